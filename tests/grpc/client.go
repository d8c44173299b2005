// Calls with Google's library for Go: client ADDRESS asks for everything, and prints what official.js prints;
// client ADDRESS CHANNELS calls without pause until its input ends, and prints what tests/stock.rs says.
package main

import (
	"bufio"
	"context"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	api "blockchain_tcp/v1"
)

const atOnce = 25

func main() {
	if len(os.Args) == 2 {
		everything(connect())
		return
	}
	channels, err := strconv.Atoi(os.Args[2])
	if err != nil {
		panic(err)
	}
	load(channels)
}

func connect() *grpc.ClientConn {
	connection, err := grpc.Dial(os.Args[1], grpc.WithInsecure(), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		panic(err)
	}
	return connection
}

func show(name string, value interface{}, err error) {
	if err != nil {
		fmt.Println(name, status.Code(err), status.Convert(err).Message())
		return
	}
	fmt.Println(name, value)
}

func everything(connection *grpc.ClientConn) {
	within := context.Background()
	server, calc := api.NewServerClient(connection), api.NewCalcClient(connection)
	who, err := server.Who(within, &api.WhoRequest{})
	show("Who", who.GetValue(), err)
	where, err := server.Where(within, &api.WhereRequest{})
	show("Where", where.GetValue(), err)
	why, err := server.Why(within, &api.WhyRequest{})
	show("Why", why.GetValue(), err)
	ping, err := server.Ping(within, &api.PingRequest{})
	show("Ping", ping.GetValue(), err)
	sum, err := calc.Add(within, &api.AddRequest{X: math.MinInt64, Y: math.MaxInt64})
	show("Add", sum.GetValue(), err)
	greater, err := calc.Max(within, &api.MaxRequest{X: -2})
	show("Max", greater.GetValue(), err)
	primes, err := calc.NthPrimes(within, &api.NthPrimesRequest{N: []int64{9999, 1234, 1, 2, 3, 4}})
	show("NthPrimes", primes.GetValues(), err)
	_, err = calc.Add(within, &api.AddRequest{X: math.MaxInt64, Y: 1})
	show("overflow", nil, err)
	_, err = calc.NthPrimes(within, &api.NthPrimesRequest{})
	show("nothing", nil, err)
	err = connection.Invoke(within, "/blockchain_tcp.v1.Calc/Divide", &api.AddRequest{}, &api.AddResponse{})
	show("unknown", nil, err)
	fmt.Println("late", status.Code(hasty(calc)))
	var sums int64
	var calls sync.WaitGroup
	for number := int64(0); number < 1000; number++ {
		calls.Add(1)
		go func(number int64) {
			defer calls.Done()
			sum, err := calc.Add(within, &api.AddRequest{X: number, Y: 1})
			if err != nil {
				show("failed", nil, err)
			}
			atomic.AddInt64(&sums, sum.GetValue())
		}(number)
	}
	calls.Wait()
	fmt.Println("at once", sums)
}

func load(channels int) {
	var over, asked, answered, late int64
	var guard sync.Mutex
	var ended sync.WaitGroup
	changed := sync.NewCond(&guard)
	done := make([]int64, channels)
	failed := "["
	fail := func(err error) {
		guard.Lock()
		failed += err.Error() + ";"
		guard.Unlock()
	}
	computes := os.Getenv("COMPUTES") != ""
	round := func(calc api.CalcClient, number int64) {
		var calls sync.WaitGroup
		within, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		for y := int64(0); y < atOnce; y++ {
			calls.Add(1)
			go func(y int64) {
				defer calls.Done()
				sum, err := calc.Add(within, &api.AddRequest{X: number, Y: y})
				if err == nil && sum.Value != number+y {
					err = fmt.Errorf("%d and %d is %d", number, y, sum.Value)
				}
				if err != nil {
					fail(err)
				}
				atomic.AddInt64(&answered, 1)
			}(y)
		}
		if computes {
			primes, err := calc.NthPrimes(within, &api.NthPrimesRequest{N: []int64{100}})
			if err == nil && (len(primes.Values) != 1 || primes.Values[0] != 541) {
				err = fmt.Errorf("not 541")
			}
			// On a busy machine it may get no turn in time.
			if err != nil && !strings.Contains(err.Error(), "too many clients compute") {
				fail(err)
			}
			if err := hasty(calc); status.Code(err) == codes.DeadlineExceeded {
				atomic.AddInt64(&late, 1)
			} else if err != nil {
				fail(fmt.Errorf("not late: %v", err))
			}
		}
		calls.Wait()
	}
	for channel := 0; channel < channels; channel++ {
		ended.Add(1)
		go func(channel int) {
			defer ended.Done()
			calc := api.NewCalcClient(connect())
			for number := int64(0); atomic.LoadInt64(&over) == 0; number += atOnce {
				since := atomic.LoadInt64(&asked)
				round(calc, number)
				guard.Lock()
				done[channel] = since
				changed.Broadcast()
				guard.Unlock()
			}
		}(channel)
	}
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		atomic.AddInt64(&asked, 1)
		guard.Lock()
		for !all(done, asked) {
			changed.Wait()
		}
		guard.Unlock()
		fmt.Println("round")
	}
	atomic.StoreInt64(&over, 1)
	ended.Wait()
	fmt.Println(atomic.LoadInt64(&answered), late, failed+"]")
}

func all(done []int64, asked int64) bool {
	for _, since := range done {
		if since < asked {
			return false
		}
	}
	return true
}

// A call that has less time than it takes.
func hasty(calc api.CalcClient) error {
	short, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	_, err := calc.NthPrimes(short, &api.NthPrimesRequest{N: long()})
	return err
}

func long() []int64 {
	many := make([]int64, 1024)
	for place := range many {
		many[place] = 10_000_000
	}
	return many
}
