// Asks blockchain-tcpd over gRPC: grpc_client HOST:PORT. README.md, beside this file, says how to build it.
package main

import (
	"context"
	"fmt"
	"log"
	"math"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	api "blockchain_tcp/v1"
)

func main() {
	connection, err := grpc.Dial(os.Args[1], grpc.WithInsecure())
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	calc := api.NewCalcClient(connection)
	within, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	sum, err := calc.Add(within, &api.AddRequest{X: 2, Y: 5})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("add 2 5:", sum.Value)
	primes, err := calc.NthPrimes(within, &api.NthPrimesRequest{N: []int64{9999, 1234, 1}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("primes 9999 1234 1:", strings.Trim(fmt.Sprint(primes.Values), "[]"))
	_, err = calc.Add(within, &api.AddRequest{X: math.MaxInt64, Y: 1})
	if status.Code(err) != codes.OutOfRange {
		log.Fatal(err)
	}
	fmt.Println("add 9223372036854775807 1:", status.Convert(err).Message())
}
