// A client of blockchain-tcpd in Go 1.19 or later, with the standard library alone.
//
//	go run client.go [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]
//
// Type Client is to be copied, the program below it shows its use. README.md, beside this file, says what both do.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const (
	longestRequest = 1023                   // bytes, without the line end
	longestReply   = 4096                   // bytes: a server that sends longer lines speaks something else
	batchSize      = 4096                   // bytes of requests sent at once: the system takes them even when the server reads none
	attempts       = 5                      // in a row without a reply, before it gives up
	firstPause     = 100 * time.Millisecond // before the second attempt, and twice as long before each further one
)

// ServerError is what the server answers in the place of a value: a word for programs and a sentence for people.
type ServerError struct{ Word, Sentence string }

func (e *ServerError) Error() string { return e.Word + ": " + e.Sentence }

var (
	// ErrRequest means that this can't be asked.
	ErrRequest = errors.New("not a request")
	// ErrBusy means that the server has no room now.
	ErrBusy     = errors.New("the server is busy")
	errLate     = errors.New("no reply in time")
	errClosed   = errors.New("the server closed the connection")
	errNonsense = errors.New("the server sent something that is no reply")

	requestLine = regexp.MustCompile(`^[\t -~]*[!-~][\t -~]*$`)
	replyLine   = regexp.MustCompile(`^[ -~]*\n$`)
)

// Client is a connection that is made when it is needed, and made again when it is lost.
type Client struct {
	Address string
	Timeout time.Duration
	conn    net.Conn
	reader  *bufio.Reader
	waiting int // replies that are still to come
}

// Close may be called at any time; what is asked after it connects again.
func (c *Client) Close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
	c.waiting = 0
}

// Ask hands the reply to each request to take, in order: a value, or a ServerError. It fails when there is no connection.
func (c *Client) Ask(requests []string, take func(request, value string, refused *ServerError)) error {
	for _, request := range requests {
		if len(request) > longestRequest || !requestLine.MatchString(request) {
			return fmt.Errorf("%w: %s", ErrRequest, request)
		}
	}
	for failures := 0; len(requests) > 0; {
		answered, err := c.exchange(firstBatch(requests), take)
		requests = requests[answered:]
		if answered > 0 {
			failures = 0
		}
		if err != nil {
			c.Close()
			failures++
			if failures == attempts {
				return err
			}
			time.Sleep(firstPause << (failures - 1))
		}
	}
	return nil
}

// KeepAlive is to be called when nothing has been asked for a while, or the server closes the connection.
func (c *Client) KeepAlive() error {
	var answer string
	err := c.Ask([]string{"PING"}, func(_, value string, _ *ServerError) { answer = value })
	if answer != "PONG" {
		c.Close()
	}
	return err
}

// exchange returns how many requests were answered, and an error if not all were.
func (c *Client) exchange(batch []string, take func(string, string, *ServerError)) (int, error) {
	// What nobody has waited for, because take has panicked, is no reply to what is asked next.
	if c.conn != nil && (c.waiting > 0 || !c.quiet()) {
		c.Close()
	}
	if c.conn == nil {
		if err := c.connect(); err != nil {
			return 0, fmt.Errorf("no connection: %w", err)
		}
	}
	c.waiting = len(batch)
	c.conn.SetDeadline(time.Now().Add(c.Timeout))
	if _, err := io.WriteString(c.conn, strings.Join(batch, "\n")+"\n"); err != nil {
		return 0, err
	}
	for i, request := range batch {
		value, refused, err := c.reply()
		if err != nil {
			return i, err
		}
		c.waiting--
		take(request, value, refused)
	}
	return len(batch), nil
}

// connect tries one address of the name after the other, each for the whole time-out, which a dialer would divide among them.
func (c *Client) connect() error {
	host, port, err := net.SplitHostPort(c.Address)
	if err != nil {
		return err
	}
	inTime, cancel := context.WithTimeout(context.Background(), c.Timeout)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupHost(inTime, host)
	for _, address := range addresses {
		var conn net.Conn
		if conn, err = net.DialTimeout("tcp", net.JoinHostPort(address, port), c.Timeout); err == nil {
			c.conn, c.reader = conn, bufio.NewReaderSize(conn, longestReply+1)
			return nil
		}
	}
	return err
}

// quiet tells whether nothing has come while nobody asked: that would be the end, or last words, or no reply to what is asked next.
func (c *Client) quiet() bool {
	c.conn.SetDeadline(time.Now().Add(time.Millisecond))
	_, err := c.reader.Peek(1)
	return errors.Is(err, os.ErrDeadlineExceeded)
}

func (c *Client) reply() (string, *ServerError, error) {
	line, err := c.line()
	if err != nil || !strings.HasPrefix(line, "ERR ") {
		return line, nil, err
	}
	word, sentence, _ := strings.Cut(line[len("ERR "):], " ")
	switch word { // These two are about the connection, whatever was asked, and the server closes after them.
	case "BUSY":
		return "", nil, fmt.Errorf("%w: %s", ErrBusy, sentence)
	case "TIMEOUT":
		return "", nil, fmt.Errorf("%w: %s", errClosed, sentence)
	}
	return "", &ServerError{word, sentence}, nil
}

func (c *Client) line() (string, error) {
	c.conn.SetDeadline(time.Now().Add(c.Timeout))
	line, err := c.reader.ReadSlice('\n')
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "", errLate
	case errors.Is(err, io.EOF):
		return "", errClosed
	case err != nil && !errors.Is(err, bufio.ErrBufferFull):
		return "", err
	case !replyLine.Match(line):
		return "", errNonsense
	}
	return string(line[:len(line)-1]), nil
}

// firstBatch is as many of the requests as are sent at once.
func firstBatch(requests []string) []string {
	size := 0
	for i, request := range requests {
		size += len(request) + 1
		if size > batchSize {
			return requests[:i]
		}
	}
	return requests
}

// The program.

func complain(status int, format string, arguments ...any) int {
	fmt.Fprintf(os.Stderr, "client: "+format+"\n", arguments...)
	return status
}

// askAndPrint returns the exit status that this comes to.
func askAndPrint(client *Client, requests []string) (status int) {
	err := client.Ask(requests, func(request, value string, refused *ServerError) {
		if refused != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", request, refused)
			status = 1
		} else if _, err := fmt.Printf("%s\t%s\n", request, value); err != nil {
			os.Exit(complain(74, "stdout: %v", err))
		}
	})
	switch {
	case errors.Is(err, ErrRequest):
		wrong("%v", err)
	case errors.Is(err, ErrBusy):
		return complain(75, "%s: %v", client.Address, err)
	case err != nil:
		return complain(69, "%s: %v", client.Address, err)
	}
	return status
}

// wait keeps the connection alive meanwhile.
func wait(client *Client, left, keepalive time.Duration) {
	for ; left > keepalive; left -= keepalive {
		time.Sleep(keepalive)
		client.KeepAlive() // If it fails, the next request says so, if it still is so then.
	}
	time.Sleep(left)
}

func wrong(format string, arguments ...any) {
	fmt.Fprintln(os.Stderr, "usage: client [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]")
	os.Exit(complain(64, format, arguments...))
}

var decimal = regexp.MustCompile(`^[0-9]*\.?[0-9]+$`)

func seconds(text string) time.Duration {
	number, err := strconv.ParseFloat(text, 64)
	if err != nil || !decimal.MatchString(text) || number < 0.001 || number > 1e6 {
		wrong("not a number of seconds: %s", text)
	}
	return time.Duration(number * float64(time.Second))
}

func setting(name, otherwise string) time.Duration {
	if text, set := os.LookupEnv(name); set {
		return seconds(text)
	}
	return seconds(otherwise)
}

func main() {
	words, repeat := os.Args[1:], time.Duration(0)
	if len(words) > 1 && words[0] == "--repeat" {
		repeat, words = seconds(words[1]), words[2:]
	}
	if len(words) < 3 || words[0] == "" || strings.HasPrefix(words[0], "-") {
		wrong("nothing to ask")
	}
	host, port, requests := words[0], words[1], words[2:]
	if number, err := strconv.ParseUint(port, 10, 16); err != nil || number == 0 {
		wrong("not a port: %s", port)
	}
	client := &Client{Address: net.JoinHostPort(host, port), Timeout: setting("TIMEOUT", "2")}
	keepalive := setting("KEEPALIVE", "60")
	for repeat > 0 {
		askAndPrint(client, requests)
		wait(client, repeat, keepalive)
	}
	os.Exit(askAndPrint(client, requests))
}
