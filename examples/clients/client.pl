#!/usr/bin/perl
# A client of blockchain-tcpd in Perl 5.20 or later, with core modules alone.
#
#     perl client.pl [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]
#
# Package Client is to be copied, the program below it shows its use. README.md, beside this file, says what both do.
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
        LONGEST_REQUEST => 1023,    # bytes, without the line end
        LONGEST_REPLY   => 4096,    # bytes: a server that sends longer lines speaks something else
        BATCH           => 4096,    # bytes of requests sent at once: the system takes them even when the server reads none
        ATTEMPTS        => 5,       # in a row without a reply, before it gives up
        PAUSE           => 0.1,     # seconds before the second attempt, and twice as long before each further one
    };

    sub new {
        my ($class, $host, $port, $timeout) = @_;
        return bless { host => $host, port => $port, timeout => $timeout // 2, buffer => '', waiting => 0 }, $class;
    }

    sub close {
        my ($self) = @_;
        delete $self->{socket};    # with its last reference it is closed
        @$self{qw(buffer waiting)} = ('', 0);    # replies that are still to come: none
        return;
    }

    # Hands each request and the reply to it, a string or a ServerError, to the function, in order. Dies without a connection.
    sub ask {
        my ($self, $take, @requests) = @_;
        for (@requests) {
            die "not a request: $_\n" if length > LONGEST_REQUEST || !/\A[\t -~]*[!-~][\t -~]*\z/;
        }
        my $failures = 0;
        while (@requests) {
            my $asked = eval { $self->_send(@requests) };
            while ($asked) {
                my $reply = eval { $self->_reply } // last;
                $self->{waiting}--;
                $take->(shift @requests, $reply);
                $asked--;
                $failures = 0;
            }
            next if defined $asked && $asked == 0;
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
        $self->ask(sub { $self->close if $_[1] ne 'PONG' }, 'PING');
        return;
    }

    # Sends as many of the requests as are sent at once, and returns how many.
    sub _send {
        my ($self, @requests) = @_;
        # What nobody has waited for, because the caller has died, or what has come unasked is no reply to what is asked next.
        $self->close if $self->{socket} && ($self->{waiting} || $self->{buffer} ne '' || $self->_readable(0));
        $self->{socket} //= IO::Socket::IP->new(
            PeerHost => $self->{host}, PeerService => $self->{port}, Type => SOCK_STREAM, Timeout => $self->{timeout},
        ) // die "no connection: $@\n";
        $self->{socket}->blocking(1);
        my ($lines, $asked) = ('', 0);
        for (@requests) {
            last if length($lines) + length >= BATCH;
            $lines .= "$_\n";
            $asked++;
        }
        $self->{waiting} = $asked;
        local $SIG{PIPE} = 'IGNORE';
        syswrite($self->{socket}, $lines) // die "$!\n";
        return $asked;
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
        while ($self->{buffer} !~ /\n/ && length $self->{buffer} <= LONGEST_REPLY) {
            my $left = $deadline - clock_gettime(CLOCK_MONOTONIC);
            die "no reply in time\n" if $left <= 0 || !$self->_readable($left);
            my $read = sysread($self->{socket}, $self->{buffer}, LONGEST_REPLY, length $self->{buffer});
            die "$!\n" if !defined $read;
            die "the server closed the connection\n" if $read == 0;
        }
        $self->{buffer} =~ s/\A([ -~]*)\n// && length $1 <= LONGEST_REPLY
            or die "the server sent something that is no reply\n";
        return $1;
    }
}

# The program.
package main;

use Time::HiRes qw(sleep);

# Returns the exit status that this comes to.
sub ask_and_print {
    my ($client, @requests) = @_;
    my $status = 0;
    my $print = sub {
        my ($request, $reply) = @_;
        if (ref $reply) {
            print STDERR "$request: ", $reply->text, "\n";
            $status = 1;
        } elsif (!(print "$request\t$reply\n")) {
            print STDERR "client: stdout: $!\n";
            exit 74;
        }
    };
    return $status if eval { $client->ask($print, @requests); 1 };
    wrong($@) if $@ =~ /^not a request/;
    print STDERR "client: $client->{host}:$client->{port}: $@";
    return $@ =~ /^the server is busy/ ? 75 : 69;
}

# Waits, and keeps the connection alive meanwhile.
sub wait_for {
    my ($client, $left, $keepalive) = @_;
    for (; $left > $keepalive; $left -= $keepalive) {
        sleep $keepalive;
        eval { $client->keep_alive };    # If it fails, the next request says so, if it still is so then.
    }
    sleep $left;
    return;
}

sub wrong {
    my ($message) = @_;
    chomp $message;
    print STDERR "usage: client [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]\nclient: $message\n";
    exit 64;
}

sub seconds {
    my ($text) = @_;
    wrong("not a number of seconds: $text") if $text !~ /\A[0-9]*\.?[0-9]+\z/ || $text < 0.001 || $text > 1e6;
    return $text;
}

my $repeat;
if (@ARGV > 1 && $ARGV[0] eq '--repeat') {
    shift;
    $repeat = seconds(shift);
}
my ($host, $port, @requests) = @ARGV;
wrong('nothing to ask') if !@requests || $host !~ /^[^-]/;
wrong("not a port: $port") if $port !~ /\A[0-9]{1,5}\z/ || $port < 1 || $port > 65535;
my $client = Client->new($host, $port, seconds($ENV{TIMEOUT} // 2));
my $keepalive = seconds($ENV{KEEPALIVE} // 60);

$| = 1;
while ($repeat) {
    ask_and_print($client, @requests);
    wait_for($client, $repeat, $keepalive);
}
exit ask_and_print($client, @requests);
