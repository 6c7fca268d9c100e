package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/milvus-io/milvus/pkg/v2/mq/common"
	"github.com/milvus-io/milvus/pkg/v2/mq/msgstream/mqwrapper"
)

const (
	// A consumer that gets nothing for this long has lost the rest.
	stall = 30 * time.Second
	// How long to look for messages beyond the last one.
	extra = 100 * time.Millisecond
	// Milvus' time tick.
	tick = 200 * time.Millisecond
	// Below this a sleep oversleeps; the wait for the next due message turns into a loop.
	spin = 200 * time.Microsecond
	// Messages that are verified together; acknowledgements must not wait for more.
	takeMax = 64
)

// sample is the answer to "go".
type sample struct {
	Seconds     float64  `json:"seconds"`
	PublishedS  float64  `json:"published_s"`
	VerifyS     float64  `json:"verify_s"`
	Levels      []string `json:"levels"`
	WireBytes   *int     `json:"wire_bytes"`
	LatenciesNs []int64  `json:"latencies_ns"`
	counts
}

// operation publishes and receives everything once, over a topic of its own.
type operation struct {
	queue    queue
	spec     *spec
	topic    string
	payloads *payloads
	check    *checker
	producer mqwrapper.Producer
	consumer mqwrapper.Consumer
	started  time.Time
	received []time.Duration // by number, since started; -1: not yet
	ended    time.Duration
}

func prepare(q queue, wanted *spec, number uint64) (*operation, error) {
	made, err := newPayloads(wanted.Sizes, number)
	if err != nil {
		return nil, err
	}
	topic := fmt.Sprintf("bench-%d", number)
	ctx := context.Background()
	producer, err := q.client().CreateProducer(ctx, common.ProducerOptions{Topic: topic})
	if err != nil {
		return nil, err
	}
	consumer, err := q.client().Subscribe(ctx, mqwrapper.ConsumerOptions{
		Topic:                       topic,
		SubscriptionName:            group,
		SubscriptionInitialPosition: common.SubscriptionPositionEarliest,
		BufSize:                     receiveBuffer,
	})
	if err != nil {
		return nil, err
	}
	received := slices.Repeat([]time.Duration{-1}, wanted.Count)
	// The garbage of the operation before belongs to that one.
	runtime.GC()
	return &operation{
		queue: q, spec: wanted, topic: topic, payloads: made, check: newChecker(made),
		producer: producer, consumer: consumer, received: received,
	}, nil
}

func (o *operation) run() (*sample, error) {
	finished := make(chan error, 1)
	concurrent := o.spec.Workload != "publish"
	o.started = time.Now()
	if concurrent {
		go func() { finished <- o.receive() }()
	}
	if err := o.publishAll(); err != nil {
		return nil, err
	}
	published := time.Since(o.started)
	if !concurrent {
		go func() { finished <- o.receive() }()
	}
	if err := <-finished; err != nil {
		return nil, err
	}
	result := &sample{
		Seconds:    published.Seconds(),
		PublishedS: published.Seconds(),
		Levels:     []string{"stored"},
	}
	if concurrent {
		result.Seconds = o.ended.Seconds()
		result.VerifyS = o.check.spent.Seconds()
	}
	if o.spec.Rate != nil {
		result.LatenciesNs = o.latencies()
	}
	o.takeExtra()
	result.counts = o.check.result()
	o.consumer.Close()
	o.producer.Close()
	return result, o.payloads.free()
}

// due is when message n is to be handed over, since the start.
func (o *operation) due(n int) time.Duration {
	return time.Duration(float64(n) / *o.spec.Rate * float64(time.Second))
}

func (o *operation) publishAll() error {
	views, step := o.payloads.views, o.queue.batch()
	for first := 0; first < len(views); {
		last := min(first+step, len(views))
		if o.spec.Rate != nil {
			last = o.waitUntilDue(first, last)
		}
		if err := o.queue.publish(o.producer, o.topic, views[first:last]); err != nil {
			return err
		}
		first = last
	}
	return nil
}

// waitUntilDue returns the end of what is due when message first is, at most last.
func (o *operation) waitUntilDue(first, last int) int {
	for {
		wait := o.due(first) - time.Since(o.started)
		if wait <= 0 {
			break
		}
		if wait > spin {
			// Not time.Sleep: Go's own timers are up to 1 ms late.
			pause := syscall.NsecToTimespec(int64(wait - spin))
			_ = syscall.Nanosleep(&pause, nil)
		} else {
			runtime.Gosched()
		}
	}
	end := first + 1
	for now := time.Since(o.started); end < last && o.due(end) <= now; {
		end++
	}
	return end
}

// receive takes, verifies and acknowledges until the last message or a stall.
func (o *operation) receive() error {
	messages := o.consumer.Chan()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	taken := make([]common.Message, 0, takeMax)
	last := time.Now()
	for o.check.Received < o.spec.Count {
		select {
		case message, ok := <-messages:
			if !ok {
				return errors.New("Milvus closed the consumer's channel")
			}
			taken = o.drain(messages, append(taken[:0], message))
			o.take(taken)
			o.ended = time.Since(o.started)
			last = time.Now()
		case <-ticker.C:
			if time.Since(last) > stall {
				o.ended = time.Since(o.started)
				return nil
			}
			if time.Since(last) > tick {
				o.queue.wake(o.topic)
			}
		}
	}
	return nil
}

// drain appends what lies in the channel already.
func (o *operation) drain(messages <-chan common.Message, taken []common.Message) []common.Message {
	for len(taken) < takeMax {
		select {
		case message, ok := <-messages:
			if !ok {
				return taken
			}
			taken = append(taken, message)
		default:
			return taken
		}
	}
	return taken
}

func (o *operation) take(taken []common.Message) {
	now := time.Since(o.started)
	o.check.take(taken, func(number int) { o.received[number] = now })
	for _, message := range taken {
		o.consumer.Ack(message)
	}
}

// takeExtra looks for messages that came twice after the last one.
func (o *operation) takeExtra() {
	messages := o.consumer.Chan()
	timer := time.NewTimer(extra)
	defer timer.Stop()
	for {
		select {
		case message, ok := <-messages:
			if !ok {
				return
			}
			o.take([]common.Message{message})
		case <-timer.C:
			return
		}
	}
}

func (o *operation) latencies() []int64 {
	late := make([]int64, 0, len(o.received))
	for number, at := range o.received {
		if at >= 0 {
			late = append(late, int64(at-o.due(number)))
		}
	}
	return late
}
