#!/usr/bin/perl
# A client of blockchain-tcpd in Perl 5.20 or later, with core modules alone.
#
#     perl client.pl [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]
#
# Package Client connects to any address of a name, within a time-out; sends many requests at once and matches their replies,
# however these are cut into packets; gives an ERR as an object of its own; keeps the connection alive with PING; and, when
# it is lost, makes a new one and asks again what was not answered. README.md, beside this file, says what is printed and when.
use strict;
use warnings;

# What the server answers in the place of a value: a word for programs and a sentence for people.
package ServerError {
    sub new { my ($class, $word, $sentence) = @_; return bless { word => $word, sentence => $sentence }, $class }
    sub text { my ($self) = @_; return "$self->{word}: $self->{sentence}" }
}

# A connection that is made when it is needed, and made again when it is lost.
package Client {
    use IO::Select;
    use IO::Socket::IP;
    use Time::HiRes qw(clock_gettime sleep CLOCK_MONOTONIC);

    use constant {
        LONGEST_REPLY => 4096,    # bytes: a server that sends longer lines speaks something else
        BATCH         => 4096,    # bytes of requests sent at once: the system takes them even when the server reads none
        ATTEMPTS      => 5,       # in a row without a reply, before it gives up
        PAUSE         => 0.1,     # seconds before the second attempt, and twice as long before each further one
    };

    sub new {
        my ($class, $host, $port, $timeout) = @_;
        return bless { host => $host, port => $port, timeout => $timeout // 2, buffer => '' }, $class;
    }

    sub close {
        my ($self) = @_;
        delete $self->{socket};    # with its last reference it is closed
        $self->{buffer} = '';
        return;
    }

    # Hands each request and the reply to it, a string or a ServerError, to the function, in order. Dies without a connection.
    sub ask {
        my ($self, $take, @requests) = @_;
        my $failures = 0;
        while (@requests) {
            my $answered = sub { $take->(shift(@requests), shift); $failures = 0 };
            next if eval { $self->_exchange($answered, @requests); 1 };
            my $error = $@;
            $self->close;
            die $error if ++$failures == ATTEMPTS;
            sleep PAUSE * 2**($failures - 1);
        }
        return;
    }

    # To be called when nothing has been asked for a while, or the server closes the connection.
    sub keep_alive {
        my ($self) = @_;
        my $answer;
        $self->ask(sub { $answer = $_[1] }, 'PING');
        $self->close if $answer ne 'PONG';
        return;
    }

    sub _exchange {
        my ($self, $take, @requests) = @_;
        # Nobody was asked anything: what has come is the end, or last words, or no reply to what is asked next.
        $self->close if $self->{socket} && ($self->{buffer} ne '' || $self->_readable(0));
        $self->{socket} //= IO::Socket::IP->new(
            PeerHost => $self->{host}, PeerService => $self->{port}, Type => SOCK_STREAM, Timeout => $self->{timeout},
        ) // die "no connection: $@\n";
        $self->{socket}->blocking(1);
        while (@requests) {
            my @batch = shift @requests;
            my $lines = "$batch[0]\n";
            while (@requests && length($lines) + length($requests[0]) + 1 <= BATCH) {
                push @batch, shift @requests;
                $lines .= "$batch[-1]\n";
            }
            local $SIG{PIPE} = 'IGNORE';
            syswrite($self->{socket}, $lines) // die "can't send: $!\n";
            $take->($self->_reply) for @batch;
        }
        return;
    }

    sub _readable {
        my ($self, $seconds) = @_;
        return IO::Select->new($self->{socket})->can_read($seconds);
    }

    sub _reply {
        my ($self) = @_;
        my $line = $self->_line;
        my ($word, $sentence) = $line =~ /^ERR ([^ ]*) ?(.*)$/ or return $line;
        # These two are about the connection, whatever was asked, and the server closes after them.
        die "the server is busy: $sentence\n" if $word eq 'BUSY';
        die "the server closed the connection: $sentence\n" if $word eq 'TIMEOUT';
        return ServerError->new($word, $sentence);
    }

    sub _line {
        my ($self) = @_;
        my $deadline = clock_gettime(CLOCK_MONOTONIC) + $self->{timeout};
        my $end;
        while (($end = index($self->{buffer}, "\n")) < 0 && length($self->{buffer}) <= LONGEST_REPLY) {
            my $left = $deadline - clock_gettime(CLOCK_MONOTONIC);
            die "no reply in time\n" if $left <= 0 || !$self->_readable($left);
            my $read = sysread($self->{socket}, $self->{buffer}, LONGEST_REPLY, length $self->{buffer});
            die "can't receive: $!\n" if !defined $read;
            die "the server closed the connection\n" if $read == 0;
        }
        my $line = substr($self->{buffer}, 0, $end < 0 ? LONGEST_REPLY + 1 : $end + 1, '');
        $line =~ s/\n\z//;
        die "the server sent something that is no reply\n" if length $line > LONGEST_REPLY || $line =~ /[^ -~]/;
        return $line;
    }
}

package main;

use Time::HiRes qw(clock_gettime sleep CLOCK_MONOTONIC);

# Returns the exit status that this comes to.
sub ask_and_print {
    my ($client, @requests) = @_;
    my $status = 0;
    my $print = sub {
        my ($request, $reply) = @_;
        return print "$request\t$reply\n" if !ref $reply;
        print STDERR "$request: ", $reply->text, "\n";
        $status = 1;
    };
    if (!eval { $client->ask($print, @requests); 1 }) {
        print STDERR "client.pl: $client->{host}:$client->{port}: $@";
        $status = $@ =~ /^the server is busy/ ? 75 : 69;
    }
    STDOUT->flush;
    return $status;
}

# Waits, and keeps the connection alive meanwhile.
sub wait_for {
    my ($client, $seconds, $keepalive) = @_;
    my $end = clock_gettime(CLOCK_MONOTONIC) + $seconds;
    while ((my $left = $end - clock_gettime(CLOCK_MONOTONIC)) > 0) {
        sleep($left < $keepalive ? $left : $keepalive);
        # If it fails, the next request says so, if it still is so then.
        eval { $client->keep_alive } if $left > $keepalive;
    }
    return;
}

sub wrong {
    print STDERR "usage: perl client.pl [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]\nclient.pl: @_\n";
    exit 64;
}

sub seconds {
    my ($text) = @_;
    wrong("not a number of seconds: $text") if $text !~ /\A[0-9]*\.?[0-9]+\z/ || $text <= 0 || $text > 1e6;
    return $text;
}

my $repeat;
if (@ARGV > 1 && $ARGV[0] eq '--repeat') {
    shift;
    $repeat = seconds(shift);
}
my ($host, $port, @requests) = @ARGV;
wrong('nothing to ask') if !@requests || $host =~ /^-/;
wrong("not a port: $port") if $port !~ /\A[0-9]{1,5}\z/ || $port < 1 || $port > 65535;
# A line without a word would get no reply; a line end, or too long a line, would be something else.
for (@requests) {
    wrong("not a request: $_") if !/\A[\t -~]*[!-~][\t -~]*\z/ || length > 1023;
}
my $client = Client->new($host, $port, seconds($ENV{TIMEOUT} // 2));
my $keepalive = seconds($ENV{KEEPALIVE} // 60);

my $status = 0;
$SIG{INT} = $SIG{TERM} = sub { $client->close; exit $status };
while (1) {
    my $latest = ask_and_print($client, @requests);
    exit $latest if !$repeat;
    $status ||= $latest && 1;
    wait_for($client, $repeat, $keepalive);
}
