// The gRPC server of the comparison: Add of our schema by Google's library for Go.
//
// Debian builds it offline: GO111MODULE=off GOPATH=/usr/share/gocode go build server.go. It prints its address.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"

	"google.golang.org/grpc"
)

// The messages, as protoc-gen-go declares them.
type addRequest struct {
	X int64 `protobuf:"varint,1,opt,name=x,proto3" json:"x,omitempty"`
	Y int64 `protobuf:"varint,2,opt,name=y,proto3" json:"y,omitempty"`
}

type addResponse struct {
	Value int64 `protobuf:"varint,1,opt,name=value,proto3" json:"value,omitempty"`
}

func (m *addRequest) Reset()          { *m = addRequest{} }
func (m *addRequest) String() string  { return fmt.Sprint(m.X, m.Y) }
func (*addRequest) ProtoMessage()     {}
func (m *addResponse) Reset()         { *m = addResponse{} }
func (m *addResponse) String() string { return fmt.Sprint(m.Value) }
func (*addResponse) ProtoMessage()    {}

func add(_ interface{}, _ context.Context, decode func(interface{}) error, _ grpc.UnaryServerInterceptor) (interface{}, error) {
	request := new(addRequest)
	if err := decode(request); err != nil {
		return nil, err
	}
	return &addResponse{Value: request.X + request.Y}, nil
}

func main() {
	// On one core, as the daemon is.
	runtime.GOMAXPROCS(1)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	server := grpc.NewServer()
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "blockchain_tcp.v1.Calc",
		HandlerType: (*interface{})(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Add", Handler: add}},
		Streams:     []grpc.StreamDesc{},
	}, new(int))
	fmt.Printf("INFO  ready listen=grpc://%s\n", listener.Addr())
	if err := server.Serve(listener); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
