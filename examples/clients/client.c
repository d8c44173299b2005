/*
 * A client of blockchain-tcpd in C11 for Linux, with libc alone.
 *
 *     cc -O2 -Wall -Wextra -o client client.c
 *     ./client [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]
 *
 * struct client connects to any address of a name, within a time-out; sends many requests at once and matches their replies,
 * however these are cut into packets; tells an ERR from a value; keeps the connection alive with PING; and, when it is lost,
 * makes a new one and asks again what was not answered. README.md, beside this file, says what is printed and when.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    LONGEST_REPLY = 4096, /* bytes: a server that sends longer lines speaks something else */
    BATCH = 4096,         /* bytes of requests sent at once: the system takes them even when the server reads none */
    ATTEMPTS = 5,         /* in a row without a reply, before it gives up */
    PAUSE = 100,          /* milliseconds before the second attempt, and twice as long before each further one */
};

struct client {
    const char *host, *port;
    long timeout;             /* in milliseconds */
    int socket;               /* -1 while there is no connection: it is made when something is asked */
    size_t begin, end;        /* where in the buffer the bytes are that have come and are not part of a reply yet */
    char buffer[LONGEST_REPLY + 2];
    bool busy;                /* the server had no room at the last attempt */
    char trouble[128];        /* why the last attempt failed */
};

/* A reply: a value, or a word for programs and a sentence for people. */
struct reply {
    const char *word; /* NULL: no error */
    const char *text; /* the value, or the sentence */
};

typedef void taker(void *context, const char *request, struct reply reply);

static volatile sig_atomic_t stopped;

static void stop(int signal) {
    (void)signal;
    stopped = 1;
}

static long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

/* Waits until the socket is ready or the deadline has come. Signals are let in here, and nowhere else, so that none is missed. */
static bool ready(int socket, short events, long deadline) {
    struct pollfd polled = {.fd = socket, .events = events};
    sigset_t none;
    sigemptyset(&none);
    long left = deadline > now() ? deadline - now() : 0;
    struct timespec time = {.tv_sec = left / 1000, .tv_nsec = left % 1000 * 1000000};
    return !stopped && ppoll(&polled, 1, &time, &none) > 0;
}

static void client_close(struct client *client) {
    if (client->socket >= 0)
        close(client->socket);
    client->socket = -1;
    client->begin = client->end = 0;
}

static bool failed(struct client *client, const char *what, const char *more) {
    snprintf(client->trouble, sizeof client->trouble, "%s%s", what, more);
    client_close(client);
    return false;
}

static bool client_connect(struct client *client) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *addresses;
    int error = getaddrinfo(client->host, client->port, &hints, &addresses);
    if (error)
        return failed(client, gai_strerror(error), "");
    for (struct addrinfo *address = addresses; address && client->socket < 0; address = address->ai_next) {
        client->socket = socket(address->ai_family, address->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, address->ai_protocol);
        if (client->socket < 0)
            continue;
        error = connect(client->socket, address->ai_addr, address->ai_addrlen) ? errno : 0;
        if (error == EINPROGRESS) {
            error = ETIMEDOUT;
            socklen_t size = sizeof error;
            if (ready(client->socket, POLLOUT, now() + client->timeout))
                getsockopt(client->socket, SOL_SOCKET, SO_ERROR, &error, &size);
        }
        if (error)
            client_close(client);
    }
    freeaddrinfo(addresses);
    return client->socket >= 0 || failed(client, strerror(error), "");
}

static bool send_all(struct client *client, const char *bytes, size_t size) {
    long deadline = now() + client->timeout;
    while (size > 0) {
        ssize_t sent = send(client->socket, bytes, size, MSG_NOSIGNAL);
        if (sent < 0 && (errno != EAGAIN || !ready(client->socket, POLLOUT, deadline)))
            return failed(client, "can't send: ", strerror(errno));
        if (sent > 0) {
            bytes += sent;
            size -= (size_t)sent;
        }
    }
    return true;
}

/* The next line of the server, without its end; it is there until the next call. NULL: the connection is lost. */
static char *read_line(struct client *client) {
    long deadline = now() + client->timeout;
    for (;;) {
        char *line = client->buffer + client->begin;
        char *end = memchr(line, '\n', client->end - client->begin);
        for (char *byte = line; byte < (end ? end : client->buffer + client->end); byte++)
            if (*byte < ' ' || *byte > '~')
                return failed(client, "the server sent something that is no reply", ""), NULL;
        if (end) {
            *end = '\0';
            client->begin = (size_t)(end - client->buffer) + 1;
            return line;
        }
        memmove(client->buffer, line, client->end - client->begin);
        client->end -= client->begin;
        client->begin = 0;
        if (client->end > LONGEST_REPLY)
            return failed(client, "the server sent something that is no reply", ""), NULL;
        if (!ready(client->socket, POLLIN, deadline))
            return failed(client, "no reply in time", ""), NULL;
        ssize_t received = recv(client->socket, client->buffer + client->end, LONGEST_REPLY + 1 - client->end, 0);
        if (received == 0)
            return failed(client, "the server closed the connection", ""), NULL;
        if (received < 0 && errno != EAGAIN)
            return failed(client, "can't receive: ", strerror(errno)), NULL;
        client->end += received > 0 ? (size_t)received : 0;
    }
}

static bool read_reply(struct client *client, struct reply *reply) {
    char *line = read_line(client);
    if (!line)
        return false;
    *reply = (struct reply){.word = NULL, .text = line};
    if (strncmp(line, "ERR ", 4) == 0) {
        char *sentence = strchrnul(line + 4, ' ');
        reply->text = *sentence ? sentence + 1 : sentence;
        *sentence = '\0';
        reply->word = line + 4;
        /* These two are about the connection, whatever was asked, and the server closes after them. */
        client->busy = strcmp(reply->word, "BUSY") == 0;
        if (client->busy)
            return failed(client, "the server is busy: ", reply->text);
        if (strcmp(reply->word, "TIMEOUT") == 0)
            return failed(client, "the server closed the connection: ", reply->text);
    }
    return true;
}

/* Asks once, and returns how many of the requests were answered: all, unless the connection was lost. */
static size_t exchange(struct client *client, char **requests, size_t count, taker *take, void *context) {
    size_t answered = 0;
    /* Nobody was asked anything: what has come is the end, or last words, or no reply to what is asked next. */
    if (client->socket >= 0 && (client->begin < client->end || ready(client->socket, POLLIN, 0)))
        client_close(client);
    client->busy = false;
    if (client->socket < 0 && !client_connect(client))
        return 0;
    while (answered < count) {
        char batch[BATCH];
        size_t size = 0, asked = answered, length;
        while (asked < count && size + (length = strlen(requests[asked])) + 1 <= BATCH) {
            memcpy(batch + size, requests[asked++], length);
            size += length;
            batch[size++] = '\n';
        }
        if (!send_all(client, batch, size))
            return answered;
        while (answered < asked) {
            struct reply reply;
            if (!read_reply(client, &reply))
                return answered;
            take(context, requests[answered++], reply);
        }
    }
    return answered;
}

/* Hands the reply to each request to `take`, in order. False: there is no connection, client->trouble says why. */
static bool client_ask(struct client *client, char **requests, size_t count, taker *take, void *context) {
    for (int failures = 0; count > 0;) {
        size_t answered = exchange(client, requests, count, take, context);
        requests += answered;
        count -= answered;
        failures = answered > 0 ? 1 : failures + 1;
        if (count > 0 && (failures == ATTEMPTS || stopped))
            return false;
        if (count > 0)
            ready(-1, 0, now() + (PAUSE << (failures - 1)));
    }
    return true;
}

static void take_pong(void *context, const char *request, struct reply reply) {
    (void)request;
    *(bool *)context = !reply.word && strcmp(reply.text, "PONG") == 0;
}

/* To be called when nothing has been asked for a while, or the server closes the connection. */
static void client_keep_alive(struct client *client) {
    char *ping = "PING";
    bool is_pong = false;
    client_ask(client, &ping, 1, take_pong, &is_pong);
    if (!is_pong)
        client_close(client);
}

static void take_and_print(void *context, const char *request, struct reply reply) {
    if (reply.word) {
        fprintf(stderr, "%s: %s: %s\n", request, reply.word, reply.text);
        *(int *)context = 1;
    } else {
        printf("%s\t%s\n", request, reply.text);
    }
}

/* Returns the exit status that this comes to. */
static int ask_and_print(struct client *client, char **requests, size_t count) {
    int status = 0;
    if (!client_ask(client, requests, count, take_and_print, &status) && !stopped) {
        fprintf(stderr, "client: %s:%s: %s\n", client->host, client->port, client->trouble);
        status = client->busy ? 75 : 69;
    }
    fflush(stdout);
    return status;
}

static void wrong(const char *what, const char *text) {
    fprintf(stderr, "usage: client [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]\nclient: %s%s\n", what, text);
    exit(64);
}

/* This number of seconds in milliseconds. */
static long milliseconds(const char *text) {
    char *end;
    double number = strtod(text, &end);
    if (*end || end == text || strspn(text, "0123456789.") != strlen(text) || !(number > 0 && number <= 1e6))
        wrong("not a number of seconds: ", text);
    return (long)(number * 1000) + (number < 0.001);
}

static const char *setting(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value ? value : otherwise;
}

/* A line without a word would get no reply; a line end, or too long a line, would be something else. */
static bool is_request(const char *text) {
    bool word = false;
    for (const char *byte = text; *byte; byte++) {
        if (*byte != '\t' && (*byte < ' ' || *byte > '~'))
            return false;
        word = word || (*byte != '\t' && *byte != ' ');
    }
    return word && strlen(text) <= 1023;
}

int main(int count, char **words) {
    long repeat = 0;
    if (count > 2 && strcmp(words[1], "--repeat") == 0) {
        repeat = milliseconds(words[2]);
        words += 2;
        count -= 2;
    }
    if (count < 4 || words[1][0] == '-')
        wrong("nothing to ask", "");
    if (strspn(words[2], "0123456789") != strlen(words[2]) || atol(words[2]) < 1 || atol(words[2]) > 65535)
        wrong("not a port: ", words[2]);
    char **requests = words + 3;
    size_t number = (size_t)count - 3;
    for (size_t i = 0; i < number; i++)
        if (!is_request(requests[i]))
            wrong("not a request: ", requests[i]);
    struct client client = {.host = words[1], .port = words[2], .socket = -1};
    client.timeout = milliseconds(setting("TIMEOUT", "2"));
    long keepalive = milliseconds(setting("KEEPALIVE", "60"));

    struct sigaction action = {.sa_handler = stop};
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);

    int status = ask_and_print(&client, requests, number);
    if (repeat && status)
        status = 1;
    while (repeat && !stopped) {
        for (long next = now() + repeat; now() < next && !stopped;) {
            bool idle = next - now() > keepalive;
            ready(-1, 0, idle ? now() + keepalive : next);
            if (idle && !stopped)
                client_keep_alive(&client);
        }
        if (!stopped && ask_and_print(&client, requests, number))
            status = 1;
    }
    client_close(&client);
    return status;
}
