// Command make_fixture writes a small RocksMQ directory with Milvus' own code, and says what is in it.
//
//	make_fixture DIRECTORY > manifest.json
//
// tests/rocksmq/README.md of vecmq says how it is built and run. The directory pair is DIRECTORY/rocksmq
// and DIRECTORY/rocksmq_meta_kv.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand"
	"os"
	"time"

	"github.com/tecbot/gorocksdb"
	"go.uber.org/zap/zapcore"

	"github.com/milvus-io/milvus/pkg/v2/log"
	rocksmq "github.com/milvus-io/milvus/pkg/v2/mq/mqimpl/rocksmq/server"
	"github.com/milvus-io/milvus/pkg/v2/util/paramtable"
)

const (
	name  = "rocksmq"
	group = "readers"
	// Small, so that a small fixture has several pages.
	pageBytes = 16 << 10
	// rocksmq.timtickerInterval is 1 s: what is acked is gone after two ticks and one of slack.
	retentionWait = 4 * time.Second
)

// message is one payload as it was handed to Produce.
type message struct {
	ID        int64  `json:"id"`
	SizeBytes int    `json:"size_bytes"`
	SHA256    string `json:"sha256"`
}

type topic struct {
	Destroyed bool      `json:"destroyed"`
	Messages  []message `json:"messages"`
}

type manifest struct {
	Milvus    string            `json:"milvus"`
	PageBytes int               `json:"page_bytes"`
	Topics    map[string]*topic `json:"topics"`
	// StoreKeys and Meta are what RocksDB has in the end.
	StoreKeys []string          `json:"store_keys"`
	Meta      map[string]string `json:"meta"`
}

// server is what NewRocksMQ returns, whose type has no public name.
type server interface {
	CreateTopic(topic string) error
	DestroyTopic(topic string) error
	CreateConsumerGroup(topic, group string) error
	RegisterConsumer(consumer *rocksmq.Consumer) error
	Produce(topic string, messages []rocksmq.ProducerMessage) ([]int64, error)
	Consume(topic, group string, n int) ([]rocksmq.ConsumerMessage, error)
	Close()
}

var (
	random  = rand.New(rand.NewSource(5))
	written = manifest{
		Milvus: "2.5.15", PageBytes: pageBytes, Topics: map[string]*topic{}, Meta: map[string]string{},
	}
)

func main() {
	must(os.Chdir(os.Args[1]))
	// Below this level Milvus reports what is no fault, such as that there is no milvus.yaml.
	log.SetLevel(zapcore.ErrorLevel)
	paramtable.InitWithBaseTable(paramtable.NewBaseTable(
		paramtable.SkipRemote(true), paramtable.SkipEnv(true), paramtable.Files(nil)))
	configure("lrucacheratio", "0.06")
	configure("rocksmqPageSize", fmt.Sprint(pageBytes))
	configure("timtickerInterval", "1")

	retained()
	configure("retentionTimeInMinutes", "-1")
	configure("retentionSizeInMB", "-1")
	// Opening again writes the WAL of the first time into tables; what comes now stays in the WAL.
	lasting()
	late()

	dump()
	must(json.NewEncoder(os.Stdout).Encode(&written))
}

// retained leaves a topic whose first pages Milvus' own retention deleted.
func retained() {
	configure("retentionTimeInMinutes", "0")
	mq := open()
	defer mq.Close()
	create(mq, "retained")
	produce(mq, "retained", repeat(40, 1000))
	consume(mq, "retained", 40)
	time.Sleep(retentionWait)
	produce(mq, "retained", repeat(5, 10))
}

// lasting fills topics whose messages end up in tables.
func lasting() {
	mq := open()
	defer mq.Close()
	for _, name := range []string{"by-dev-rootcoord-dml_0", "sizes", "acked", "destroyed", "empty"} {
		create(mq, name)
	}
	produce(mq, "by-dev-rootcoord-dml_0", repeat(50, 1<<10))
	for _, size := range []int{0, 1, 1 << 10, 100 << 10, 2, 0, 17} {
		produce(mq, "sizes", []int{size})
	}
	produce(mq, "acked", repeat(40, 1000))
	consume(mq, "acked", 36)
	produce(mq, "destroyed", repeat(12, 700))
	must(mq.DestroyTopic("destroyed"))
	written.Topics["destroyed"].Destroyed = true
}

// late adds what stays in the WAL.
func late() {
	mq := open()
	defer mq.Close()
	produce(mq, "by-dev-rootcoord-dml_0", repeat(8, 1<<10))
	// As Milvus 2.6 writes values: a marker, then protobuf.
	put(mq, "sizes", [][]byte{append([]byte("\xff\xfe\xfd\xfcSTREAM"), payload(90)...)})
	produce(mq, "sizes", []int{1, 0})
}

func open() server {
	mq, err := rocksmq.NewRocksMQ(name)
	must(err)
	return mq
}

func create(mq server, topicName string) {
	must(mq.CreateTopic(topicName))
	written.Topics[topicName] = &topic{Messages: []message{}}
}

func repeat(count, size int) []int {
	sizes := make([]int, count)
	for i := range sizes {
		sizes[i] = size
	}
	return sizes
}

func payload(size int) []byte {
	bytes := make([]byte, size)
	random.Read(bytes)
	return bytes
}

func produce(mq server, topicName string, sizes []int) {
	payloads := make([][]byte, len(sizes))
	for i, size := range sizes {
		payloads[i] = payload(size)
	}
	put(mq, topicName, payloads)
}

func put(mq server, topicName string, payloads [][]byte) {
	call := make([]rocksmq.ProducerMessage, len(payloads))
	for i, bytes := range payloads {
		call[i].Payload = bytes
	}
	ids, err := mq.Produce(topicName, call)
	must(err)
	for i, id := range ids {
		sum := sha256.Sum256(payloads[i])
		one := message{ID: id, SizeBytes: len(payloads[i]), SHA256: hex.EncodeToString(sum[:])}
		written.Topics[topicName].Messages = append(written.Topics[topicName].Messages, one)
	}
}

// consume reads messages, which in RocksMQ acknowledges their pages.
func consume(mq server, topicName string, count int) {
	must(mq.CreateConsumerGroup(topicName, group))
	must(mq.RegisterConsumer(&rocksmq.Consumer{
		Topic: topicName, GroupName: group, MsgMutex: make(chan struct{}, 1),
	}))
	for count > 0 {
		got, err := mq.Consume(topicName, group, count)
		must(err)
		if len(got) == 0 {
			panic("fewer messages than were produced")
		}
		count -= len(got)
	}
}

func configure(key, value string) {
	must(paramtable.Get().Save("rocksmq."+key, value))
}

// dump adds all keys of both databases to the manifest.
func dump() {
	options := gorocksdb.NewDefaultOptions()
	families := []string{"default", "properties"}
	store, handles, err := gorocksdb.OpenDbForReadOnlyColumnFamilies(
		options, name, families, []*gorocksdb.Options{options, options}, false)
	must(err)
	each(store.NewIteratorCF(gorocksdb.NewDefaultReadOptions(), handles[0]), func(key, _ string) {
		written.StoreKeys = append(written.StoreKeys, key)
	})
	meta, err := gorocksdb.OpenDbForReadOnly(options, name+"_meta_kv", false)
	must(err)
	each(meta.NewIterator(gorocksdb.NewDefaultReadOptions()), func(key, value string) {
		written.Meta[key] = value
	})
}

func each(iterator *gorocksdb.Iterator, visit func(key, value string)) {
	defer iterator.Close()
	for iterator.SeekToFirst(); iterator.Valid(); iterator.Next() {
		key, value := iterator.Key(), iterator.Value()
		visit(string(key.Data()), string(value.Data()))
		key.Free()
		value.Free()
	}
	must(iterator.Err())
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
