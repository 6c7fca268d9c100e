package main

import (
	"context"
	"fmt"
	"path/filepath"

	"go.uber.org/zap/zapcore"

	"github.com/milvus-io/milvus/pkg/v2/log"
	"github.com/milvus-io/milvus/pkg/v2/mq/common"
	rocksmq "github.com/milvus-io/milvus/pkg/v2/mq/mqimpl/rocksmq/server"
	"github.com/milvus-io/milvus/pkg/v2/mq/msgstream/mqwrapper"
	"github.com/milvus-io/milvus/pkg/v2/mq/msgstream/mqwrapper/nmq"
	"github.com/milvus-io/milvus/pkg/v2/mq/msgstream/mqwrapper/rmq"
	"github.com/milvus-io/milvus/pkg/v2/util/paramtable"
)

const (
	group = "bench"
	// As in Milvus' own benchmark, stream_bench_test.go; its servers run with 16.
	receiveBuffer = 1024
	// More than this in one RocksDB write gains nothing.
	callBytesMax = 1 << 20
	milvusModule = "github.com/milvus-io/milvus/pkg/v2"
)

// queue is one of Milvus' two embedded queues.
type queue interface {
	client() mqwrapper.Client
	// batch is how many messages a call takes.
	batch() int
	// publish hands messages over and returns when they are acknowledged.
	publish(producer mqwrapper.Producer, topic string, messages [][]byte) error
	// wake tells an idle consumer to look again.
	wake(topic string)
	parts() map[string]string
	close()
}

func openQueue(wanted *spec) (queue, error) {
	// Below this level Milvus reports what is no fault, such as that there is no milvus.yaml.
	log.SetLevel(zapcore.ErrorLevel)
	// Without etcd and without a milvus.yaml that happens to lie about.
	paramtable.InitWithBaseTable(paramtable.NewBaseTable(
		paramtable.SkipRemote(true), paramtable.SkipEnv(true), paramtable.Files(nil)))
	switch wanted.Contender {
	case "milvus-rocksmq":
		return openRocks(wanted)
	case "milvus-natsmq":
		return openNats(wanted)
	}
	return nil, fmt.Errorf("expected contender milvus-rocksmq or milvus-natsmq, got %q", wanted.Contender)
}

// send is Milvus' own way: one message a call, each acknowledged before the next.
func send(producer mqwrapper.Producer, messages [][]byte) error {
	for _, payload := range messages {
		message := common.ProducerMessage{Payload: payload}
		if _, err := producer.Send(context.Background(), &message); err != nil {
			return err
		}
	}
	return nil
}

type rocksQueue struct {
	mq       mqwrapper.Client
	messages int
}

func openRocks(wanted *spec) (queue, error) {
	// milvus.yaml's values where the defaults in the code differ: the code's "0.0.6" is no number.
	for key, value := range map[string]string{
		"rocksmq.lrucacheratio":     "0.06",
		"rocksmq.retentionSizeInMB": "8192",
	} {
		if err := paramtable.Get().Save(key, value); err != nil {
			return nil, err
		}
	}
	if err := rocksmq.InitRocksMQ(filepath.Join(wanted.Path, "rocksmq")); err != nil {
		return nil, err
	}
	client, err := rmq.NewClientWithDefaultOptions(context.Background())
	if err != nil {
		return nil, err
	}
	// Without a wish, as Milvus calls it; its server can take several messages a call.
	messages := 1
	if wanted.Batch != nil {
		messages = max(1, min(*wanted.Batch, callBytesMax/max(1, wanted.SizeBytes)))
	}
	return &rocksQueue{client, messages}, nil
}

func (q *rocksQueue) client() mqwrapper.Client { return q.mq }

func (q *rocksQueue) batch() int { return q.messages }

func (q *rocksQueue) publish(producer mqwrapper.Producer, topic string, messages [][]byte) error {
	if q.messages == 1 {
		return send(producer, messages)
	}
	call := make([]rocksmq.ProducerMessage, len(messages))
	for i, payload := range messages {
		call[i].Payload = payload
	}
	_, err := rocksmq.Rmq.Produce(topic, call)
	return err
}

// wake stands for the time ticks that Milvus sends into every topic 5 times a second: RocksMQ may lose
// the signal of the last message.
func (q *rocksQueue) wake(topic string) { rocksmq.Rmq.Notify(topic, group) }

func (q *rocksQueue) parts() map[string]string {
	return map[string]string{milvusModule: "milvus", "rocksdb": "rocksdb"}
}

func (q *rocksQueue) close() {
	q.mq.Close()
	rocksmq.CloseRocksMQ()
}

type natsQueue struct {
	mq mqwrapper.Client
}

func openNats(wanted *spec) (queue, error) {
	config := nmq.ParseServerOption(paramtable.Get())
	config.Opts.Port = -1 // any free one
	config.Opts.StoreDir = filepath.Join(wanted.Path, "natsmq")
	config.Opts.LogFile = filepath.Join(wanted.Path, "nats.log")
	config.Opts.NoSigs = true // this program deletes the store at a signal
	nmq.MustInitNatsMQ(config)
	client, err := nmq.NewClientWithDefaultOptions(context.Background())
	if err != nil {
		return nil, err
	}
	return &natsQueue{client}, nil
}

func (q *natsQueue) client() mqwrapper.Client { return q.mq }

// batch is always 1: Send waits for its acknowledgement, and from several goroutines it would not keep
// the order of a topic.
func (q *natsQueue) batch() int { return 1 }

func (q *natsQueue) publish(producer mqwrapper.Producer, _ string, messages [][]byte) error {
	return send(producer, messages)
}

func (q *natsQueue) wake(string) {}

func (q *natsQueue) parts() map[string]string {
	return map[string]string{
		milvusModule:                        "milvus",
		"github.com/nats-io/nats-server/v2": "nats-server",
		"github.com/nats-io/nats.go":        "nats.go",
	}
}

func (q *natsQueue) close() {
	q.mq.Close()
	nmq.CloseNatsMQ()
}
