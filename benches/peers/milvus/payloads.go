package main

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"github.com/milvus-io/milvus/pkg/v2/mq/common"
)

const numberBytes = 8

// payloads are random messages; the first 8 bytes of each are its number, little-endian.
type payloads struct {
	memory []byte
	views  [][]byte
}

// newPayloads makes a message of each size. They lie outside of Go's heap: a heap that holds all of an
// operation's messages would be collected less often than Milvus' own.
func newPayloads(sizes []int, seed uint64) (*payloads, error) {
	total := 0
	for _, size := range sizes {
		total += size
	}
	memory, err := syscall.Mmap(-1, 0, max(total, 1), syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_PRIVATE|syscall.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	_, _ = rand.NewChaCha8(key).Read(memory)
	views := make([][]byte, len(sizes))
	rest := memory[:total]
	for number, size := range sizes {
		views[number], rest = rest[:size:size], rest[size:]
		binary.LittleEndian.PutUint64(views[number], uint64(number))
	}
	return &payloads{memory, views}, nil
}

func (p *payloads) free() error {
	p.views = nil
	return syscall.Munmap(p.memory)
}

// counts are the part of a sample that says what arrived.
type counts struct {
	Received  int `json:"received_count"`
	Lost      int `json:"lost_count"`
	Duplicate int `json:"duplicate_count"`
	Unordered int `json:"unordered_count"`
	Wrong     int `json:"wrong_count"`
}

// checker compares every byte of what arrives with what was sent.
type checker struct {
	counts
	payloads *payloads
	seen     []bool
	next     int
	spent    time.Duration
}

func newChecker(sent *payloads) *checker {
	return &checker{payloads: sent, seen: make([]bool, len(sent.views))}
}

// take compares messages in the order of delivery; arrived is told the number of each new one.
func (c *checker) take(messages []common.Message, arrived func(number int)) {
	// The goroutine stays on its thread only for the time that is measured on that thread.
	runtime.LockOSThread()
	started := threadTime()
	for _, message := range messages {
		c.takeOne(message.Payload(), arrived)
	}
	c.spent += threadTime() - started
	runtime.UnlockOSThread()
}

func (c *checker) takeOne(payload []byte, arrived func(number int)) {
	c.Received++
	if len(payload) < numberBytes {
		c.Wrong++
		return
	}
	named := binary.LittleEndian.Uint64(payload)
	if named >= uint64(len(c.seen)) || !bytes.Equal(payload, c.payloads.views[named]) {
		c.Wrong++
		return
	}
	number := int(named)
	if c.seen[number] {
		c.Duplicate++
		return
	}
	if number < c.next {
		c.Unordered++
	}
	c.seen[number] = true
	c.next = max(c.next, number+1)
	arrived(number)
}

func (c *checker) result() counts {
	for _, seen := range c.seen {
		if !seen {
			c.Lost++
		}
	}
	return c.counts
}

// threadTime is the CPU time of the calling thread.
func threadTime() time.Duration {
	const clockThreadCPUTime = 3 // CLOCK_THREAD_CPUTIME_ID of linux/time.h
	var now syscall.Timespec
	_, _, _ = syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockThreadCPUTime,
		uintptr(unsafe.Pointer(&now)), 0)
	return time.Duration(now.Nano())
}
