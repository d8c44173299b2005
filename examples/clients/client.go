// A client of blockchain-tcpd in Go 1.19 or later, with the standard library alone.
//
//	go run client.go [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]
//
// Type Client connects to any address of a name, within a time-out; sends many requests at once and matches their replies,
// however these are cut into packets; gives an ERR as an error of its own; keeps the connection alive with PING; and, when it
// is lost, makes a new one and asks again what was not answered. README.md, beside this file, says what is printed and when.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	longestReply = 4096                   // bytes: a server that sends longer lines speaks something else
	batchSize    = 4096                   // bytes of requests sent at once: the system takes them even when the server reads none
	attempts     = 5                      // in a row without a reply, before it gives up
	firstPause   = 100 * time.Millisecond // before the second attempt, and twice as long before each further one
)

// ServerError is what the server answers in the place of a value: a word for programs and a sentence for people.
type ServerError struct{ Word, Sentence string }

func (e *ServerError) Error() string { return e.Word + ": " + e.Sentence }

var (
	// ErrBusy means that the server has no room now.
	ErrBusy     = errors.New("the server is busy")
	errClosed   = errors.New("the server closed the connection")
	errNonsense = errors.New("the server sent something that is no reply")
)

// Client is a connection that is made when it is needed, and made again when it is lost.
type Client struct {
	Address string
	Timeout time.Duration
	conn    net.Conn
	reader  *bufio.Reader
	cancel  context.CancelFunc
}

// Close may be called at any time; what is asked after it connects again.
func (c *Client) Close() {
	if c.conn != nil {
		c.cancel()
		c.conn.Close()
		c.conn = nil
	}
}

// Ask hands the reply to each request to each, in order: a value, or a *ServerError. It returns an error when there is no
// connection, or the context has ended.
func (c *Client) Ask(ctx context.Context, requests []string, each func(request, value string, refused error)) error {
	pause, failures := firstPause, 0
	for len(requests) > 0 {
		answered := 0
		err := c.exchange(ctx, requests, func(value string, refused error) {
			each(requests[answered], value, refused)
			answered++
		})
		if err == nil {
			return nil
		}
		c.Close()
		if answered > 0 {
			requests, pause, failures = requests[answered:], firstPause, 0
		}
		if failures++; failures == attempts {
			return err
		}
		if !sleep(ctx, pause) {
			return ctx.Err()
		}
		pause *= 2
	}
	return nil
}

// KeepAlive is to be called when nothing has been asked for a while, or the server closes the connection.
func (c *Client) KeepAlive(ctx context.Context) error {
	var answer string
	err := c.Ask(ctx, []string{"PING"}, func(_, value string, _ error) { answer = value })
	if answer != "PONG" {
		c.Close()
	}
	return err
}

func (c *Client) exchange(ctx context.Context, requests []string, each func(string, error)) error {
	if c.conn != nil && !c.quiet() {
		c.Close()
	}
	if c.conn == nil {
		if err := c.connect(ctx); err != nil {
			return err
		}
	}
	for len(requests) > 0 {
		batch := batchOf(requests)
		requests = requests[len(batch):]
		c.conn.SetDeadline(time.Now().Add(c.Timeout))
		if _, err := io.WriteString(c.conn, strings.Join(batch, "\n")+"\n"); err != nil {
			return err
		}
		for range batch {
			value, err := c.reply()
			var refused *ServerError
			if err != nil && !errors.As(err, &refused) {
				return err
			}
			each(value, err)
		}
	}
	return nil
}

// quiet tells whether nothing has come while nobody asked: that would be the end, or last words, or no reply to what is asked next.
func (c *Client) quiet() bool {
	c.conn.SetDeadline(time.Now().Add(time.Millisecond))
	_, err := c.reader.Peek(1)
	return errors.Is(err, os.ErrDeadlineExceeded)
}

func (c *Client) connect(ctx context.Context) error {
	dialer := net.Dialer{Timeout: c.Timeout}
	conn, err := dialer.DialContext(ctx, "tcp", c.Address)
	if err != nil {
		return err
	}
	ctx, c.cancel = context.WithCancel(ctx)
	go func() { // Whoever reads is woken when the context ends.
		<-ctx.Done()
		conn.Close()
	}()
	c.conn, c.reader = conn, bufio.NewReaderSize(conn, longestReply+1)
	return nil
}

func (c *Client) reply() (string, error) {
	c.conn.SetDeadline(time.Now().Add(c.Timeout))
	slice, err := c.reader.ReadSlice('\n')
	switch {
	case errors.Is(err, io.EOF):
		return "", errClosed
	case errors.Is(err, bufio.ErrBufferFull):
		return "", errNonsense
	case err != nil:
		return "", err
	}
	line := string(slice[:len(slice)-1])
	if strings.IndexFunc(line, func(r rune) bool { return r < ' ' || r > '~' }) >= 0 {
		return "", errNonsense
	}
	if !strings.HasPrefix(line, "ERR ") {
		return line, nil
	}
	word, sentence, _ := strings.Cut(line[len("ERR "):], " ")
	switch word { // These two are about the connection, whatever was asked, and the server closes after them.
	case "BUSY":
		return "", fmt.Errorf("%w: %s", ErrBusy, sentence)
	case "TIMEOUT":
		return "", fmt.Errorf("%w: %s", errClosed, sentence)
	}
	return "", &ServerError{word, sentence}
}

// batchOf is the first of the requests, as many as are sent at once.
func batchOf(requests []string) []string {
	size := 0
	for i, request := range requests {
		if size += len(request) + 1; i > 0 && size > batchSize {
			return requests[:i]
		}
	}
	return requests
}

// sleep tells whether it has slept to the end.
func sleep(ctx context.Context, duration time.Duration) bool {
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// askAndPrint returns the exit status that this comes to.
func askAndPrint(ctx context.Context, client *Client, requests []string) int {
	status := 0
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	err := client.Ask(ctx, requests, func(request, value string, refused error) {
		if refused != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", request, refused)
			status = 1
		} else {
			fmt.Fprintf(out, "%s\t%s\n", request, value)
		}
	})
	if err == nil || ctx.Err() != nil {
		return status
	}
	fmt.Fprintf(os.Stderr, "client.go: %s: %v\n", client.Address, err)
	if errors.Is(err, ErrBusy) {
		return 75
	}
	return 69
}

// wait tells whether it has waited to the end; it keeps the connection alive meanwhile.
func wait(ctx context.Context, client *Client, duration, keepalive time.Duration) bool {
	for ; duration > keepalive; duration -= keepalive {
		if !sleep(ctx, keepalive) {
			return false
		}
		client.KeepAlive(ctx) // If it fails, the next request says so, if it still is so then.
	}
	return sleep(ctx, duration)
}

func wrong(format string, arguments ...any) {
	fmt.Fprintln(os.Stderr, "usage: client [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]")
	fmt.Fprintf(os.Stderr, "client.go: "+format+"\n", arguments...)
	os.Exit(64)
}

func seconds(text string) time.Duration {
	number, err := strconv.ParseFloat(text, 64)
	if err != nil || !regexp.MustCompile(`^\d*\.?\d+$`).MatchString(text) || number <= 0 || number > 1e6 {
		wrong("not a number of seconds: %s", text)
	}
	return time.Duration(number * float64(time.Second))
}

func setting(name, fallback string) time.Duration {
	if text, set := os.LookupEnv(name); set {
		fallback = text
	}
	return seconds(fallback)
}

func main() {
	flags := flag.NewFlagSet("client", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	repeat := flags.String("repeat", "", "ask again every so many `SECONDS`")
	if err := flags.Parse(os.Args[1:]); err != nil {
		wrong("%v", err)
	}
	if flags.NArg() < 3 {
		wrong("nothing to ask")
	}
	host, port, requests := flags.Arg(0), flags.Arg(1), flags.Args()[2:]
	if number, err := strconv.ParseUint(port, 10, 16); err != nil || number == 0 {
		wrong("not a port: %s", port)
	}
	// A line without a word would get no reply; a line end, or too long a line, would be something else.
	line := regexp.MustCompile(`^[\t -~]*[!-~][\t -~]*$`)
	for _, request := range requests {
		if !line.MatchString(request) || len(request) > 1023 {
			wrong("not a request: %q", request)
		}
	}
	client := &Client{Address: net.JoinHostPort(host, port), Timeout: setting("TIMEOUT", "2")}
	defer client.Close()
	keepalive := setting("KEEPALIVE", "60")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if *repeat == "" {
		os.Exit(askAndPrint(ctx, client, requests))
	}
	status, pause := 0, seconds(*repeat)
	for again := true; again; again = wait(ctx, client, pause, keepalive) {
		if askAndPrint(ctx, client, requests) != 0 {
			status = 1
		}
	}
	client.Close()
	os.Exit(status)
}
