// Command milvus-worker serves the contenders milvus-rocksmq and milvus-natsmq of `vecmq bench`.
//
// Both queues run from Milvus' own packages, with server, producer and consumer in one process, as in
// Milvus. docs/bench-workers.md of vecmq is the contract of stdin and stdout.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
)

const exitTerminated = 143

// rocksdbVersion is set by build.py: RocksDB's C API does not tell it.
var rocksdbVersion = "unknown"

// spec is the first line of stdin. Sizes has a size for each message after parsing.
type spec struct {
	Contender string   `json:"contender"`
	Workload  string   `json:"workload"`
	SizeBytes int      `json:"size_bytes"`
	Sizes     []int    `json:"sizes_bytes"`
	Count     int      `json:"count"`
	Batch     *int     `json:"batch"`
	Rate      *float64 `json:"rate_per_s"`
	Path      string   `json:"path"`
}

type ready struct {
	Ready      bool              `json:"ready"`
	Versions   map[string]string `json:"versions"`
	ServerPIDs []int             `json:"server_pids"`
	Batch      int               `json:"batch"`
}

type failure struct {
	Error   string `json:"error"`
	Message string `json:"message"`
}

func main() {
	os.Exit(run())
}

func run() int {
	answers, err := claimStdout()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	lines := bufio.NewReaderSize(os.Stdin, 1<<20)
	code := 0
	if err := serve(lines, json.NewEncoder(answers)); err != nil {
		kind := strings.TrimPrefix(fmt.Sprintf("%T", err), "*")
		_ = json.NewEncoder(answers).Encode(failure{kind, err.Error()})
		code = 1
	}
	return code
}

// claimStdout keeps the pipe for answers; Milvus logs to descriptor 1, which becomes stderr.
func claimStdout() (*os.File, error) {
	kept, err := syscall.Dup(1)
	if err != nil {
		return nil, err
	}
	syscall.CloseOnExec(kept)
	return os.NewFile(uintptr(kept), "answers"), syscall.Dup3(2, 1, 0)
}

func readSpec(lines *bufio.Reader) (*spec, error) {
	line, err := lines.ReadBytes('\n')
	if err != nil {
		return nil, fmt.Errorf("no spec on stdin: %w", err)
	}
	var wanted spec
	if err := json.Unmarshal(line, &wanted); err != nil {
		return nil, err
	}
	if wanted.Sizes == nil {
		wanted.Sizes = make([]int, wanted.Count)
		for i := range wanted.Sizes {
			wanted.Sizes[i] = wanted.SizeBytes
		}
	}
	switch wanted.Workload {
	case "pubsub", "publish", "latency":
	default:
		return nil, fmt.Errorf("expected workload pubsub, publish or latency, got %q", wanted.Workload)
	}
	if len(wanted.Sizes) != wanted.Count {
		return nil, fmt.Errorf("expected %d sizes_bytes, got %d", wanted.Count, len(wanted.Sizes))
	}
	if (wanted.Workload == "latency") != (wanted.Rate != nil) {
		return nil, errors.New("rate_per_s belongs to the workload latency, and only to it")
	}
	return &wanted, nil
}

func serve(lines *bufio.Reader, answers *json.Encoder) (err error) {
	wanted, err := readSpec(lines)
	if err != nil {
		return err
	}
	defer os.RemoveAll(wanted.Path)
	removeWhenTerminated(wanted.Path)
	if err := os.MkdirAll(wanted.Path, 0o755); err != nil {
		return err
	}
	queue, err := openQueue(wanted)
	if err != nil {
		return err
	}
	defer queue.close()
	answer := ready{true, versions(queue.parts()), []int{}, queue.batch()}
	if err := answers.Encode(answer); err != nil {
		return err
	}
	var next *operation
	for {
		line, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		words := strings.Fields(line)
		switch {
		case len(words) == 2 && words[0] == "prepare":
			number, err := strconv.ParseUint(words[1], 10, 32)
			if err != nil {
				return err
			}
			if next, err = prepare(queue, wanted, number); err != nil {
				return err
			}
			if err := answers.Encode(map[string]bool{"prepared": true}); err != nil {
				return err
			}
		case len(words) == 1 && words[0] == "go" && next != nil:
			sample, err := next.run()
			if err != nil {
				return err
			}
			next = nil
			if err := answers.Encode(sample); err != nil {
				return err
			}
		default:
			return fmt.Errorf("expected 'prepare N', then 'go', got %q", line)
		}
	}
}

// removeWhenTerminated deletes the stores on SIGTERM too. The process is not asked to close its queue
// then: RocksDB and nats-server may be in the middle of anything, and their files go anyway.
func removeWhenTerminated(path string) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-signals
		_ = os.RemoveAll(path)
		os.Exit(exitTerminated)
	}()
}

// versions reads what was linked into this program; names maps module paths to names in the table.
func versions(names map[string]string) map[string]string {
	found := map[string]string{}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, module := range info.Deps {
			if name, ok := names[module.Path]; ok {
				found[name] = strings.TrimPrefix(module.Version, "v")
			}
		}
	}
	if name, ok := names["rocksdb"]; ok {
		found[name] = rocksdbVersion
	}
	return found
}
