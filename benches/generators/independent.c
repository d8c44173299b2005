/* An independent witness for `blockchain-tcp bench`: the same load in another language, on poll() instead of epoll, with latencies
 * in buckets of equal width instead of a logarithmic histogram, and without a line of its code.
 *
 *     independent PORT CLIENTS DEPTH WARM_UP_SECONDS SECONDS
 *
 * Each client keeps DEPTH times WHY on the way to 127.0.0.1:PORT and compares every byte that comes back. It prints
 * `rate=R p50_us=P p99_us=P sent=N`, where the rate and the percentiles are those of the replies that came within SECONDS after
 * the time to warm up, and N is all that was asked.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define REQUEST "WHY\n"
#define REPLY "42\n"
#define WIDTH_NS 100
#define BUCKETS 10000000 /* up to a second */
#define PATIENCE_MS 10000

struct client {
    int64_t *sent; /* when each request on the way was sent, a ring */
    int first, waiting, at;
};

static uint64_t bucket[BUCKETS];

static void fail(const char *what)
{
    if (errno)
        perror(what);
    else
        fprintf(stderr, "%s\n", what);
    exit(1);
}

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static int64_t seconds(const char *text)
{
    return (int64_t)(atof(text) * 1e9);
}

static double percentile(uint64_t count, double part)
{
    uint64_t rank = (uint64_t)(count * part), sum = 0;
    for (int i = 0; i < BUCKETS; i++)
        if ((sum += bucket[i]) > rank)
            return (i + 0.5) * WIDTH_NS / 1000;
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 6) {
        fprintf(stderr, "independent PORT CLIENTS DEPTH WARM_UP_SECONDS SECONDS\n");
        return 1;
    }
    int clients = atoi(argv[2]), depth = atoi(argv[3]);
    struct sockaddr_in server = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[1])) };
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    struct client *all = calloc(clients, sizeof *all);
    struct pollfd *polled = calloc(clients, sizeof *polled);
    size_t request = strlen(REQUEST), reply = strlen(REPLY);
    char *block = malloc(depth * request), *room = malloc(depth * reply + 1);
    if (!all || !polled || !block || !room)
        fail("memory");
    for (int i = 0; i < depth; i++)
        memcpy(block + i * request, REQUEST, request);
    for (int i = 0; i < clients; i++) {
        int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&server, sizeof server) < 0)
            fail("connect");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        all[i].sent = calloc(depth, sizeof(int64_t));
        polled[i] = (struct pollfd){ .fd = fd, .events = POLLIN };
        if (!all[i].sent)
            fail("memory");
    }

    int64_t begin = now(), from = begin + seconds(argv[4]), to = from + seconds(argv[5]);
    uint64_t sent = 0, answered = 0, counted = 0;
    for (int i = 0; i < clients; i++) {
        int64_t moment = now();
        if (send(polled[i].fd, block, depth * request, MSG_NOSIGNAL) != (ssize_t)(depth * request))
            fail("send");
        for (int j = 0; j < depth; j++)
            all[i].sent[j] = moment;
        all[i].waiting = depth;
        sent += depth;
    }
    while (answered < sent) {
        int ready = poll(polled, clients, PATIENCE_MS);
        errno = ready < 0 ? errno : 0;
        if (ready <= 0)
            fail("poll: no reply");
        for (int i = 0; i < clients && ready > 0; i++) {
            if (!polled[i].revents)
                continue;
            ready--;
            struct client *client = &all[i];
            ssize_t count = recv(polled[i].fd, room, depth * reply + 1, MSG_DONTWAIT);
            if (count < 0 && errno == EAGAIN)
                continue;
            errno = count < 0 ? errno : 0;
            if (count <= 0)
                fail("recv: closed");
            int64_t moment = now();
            int done = 0;
            for (ssize_t byte = 0; byte < count; byte++) {
                if (room[byte] != REPLY[client->at] || done >= client->waiting) {
                    errno = 0;
                    fail("a wrong reply");
                }
                if (++client->at < (int)reply)
                    continue;
                client->at = 0;
                int64_t latency = moment - client->sent[(client->first + done) % depth];
                done++;
                if (moment >= from && moment < to) {
                    int64_t index = latency / WIDTH_NS;
                    bucket[index < BUCKETS ? index : BUCKETS - 1]++;
                    counted++;
                }
            }
            client->first = (client->first + done) % depth;
            client->waiting -= done;
            answered += done;
            if (done == 0 || moment >= to)
                continue;
            int64_t again = now();
            if (send(polled[i].fd, block, done * request, MSG_NOSIGNAL) != (ssize_t)(done * request))
                fail("send");
            for (int j = 0; j < done; j++)
                client->sent[(client->first + client->waiting + j) % depth] = again;
            client->waiting += done;
            sent += done;
        }
    }
    printf("rate=%.1f p50_us=%.2f p99_us=%.2f sent=%llu\n", counted / atof(argv[5]), percentile(counted, 0.5),
           percentile(counted, 0.99), (unsigned long long)sent);
    return 0;
}
