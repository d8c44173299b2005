#!/usr/bin/perl
# A stock client of JSON-RPC for Perl: JSON::RPC::Legacy::Client, which says version 1.1, over LWP with connections that it keeps.
# tests/support/clients.rs says what it is given and what it prints.
use strict;
use warnings;

use IO::Handle;
use IO::Select;
use JSON;
use JSON::RPC::Legacy::Client;
use List::Util qw(sum);
use Net::HTTP;

use constant PATIENCE => 30;

# How LWP says that a connection ended without an answer, and that there is none to be had.
my $closed = qr/^500 (?:Server closed connection|(?:read|write) failed|.*(?:reset by peer|Broken pipe))/i;
my $none = qr/^500 Can't connect/;

my @long = ('np', (99) x 1000);

# A client of this address.
sub client {
    my ($address, $patience) = @_;
    my $client = JSON::RPC::Legacy::Client->new;
    $client->ua->timeout($patience // PATIENCE);
    $client->ua->conn_cache({ total_capacity => 1 });
    return { client => $client, url => "http://$address/", id => 0, retried => 0, unaccepted => 0 };
}

# A call and its answer, or the status line where there is none.
sub call_once {
    my ($self, $method, @parameters) = @_;
    my $parameters = ref $parameters[0] ? $parameters[0] : \@parameters;
    my $call = { id => ++$self->{id}, method => $method, params => $parameters };
    # What LWP says itself is no JSON, which the library takes it for.
    my $answer = eval { $self->{client}->call($self->{url}, $call) };
    return $answer ? ($answer->content, undef) : (undef, $self->{client}->status_line);
}

# The same, and sends it again if the connection had been closed while it was idle, as RFC 9112 allows in section 9.3.1.
sub call {
    my ($self, @call) = @_;
    my ($answer, $status) = call_once($self, @call);
    if (!$answer && $status =~ $closed) {
        $self->{retried} += 1;
        ($answer, $status) = call_once($self, @call);
        $self->{unaccepted} += 1 if !$answer && $status =~ /$closed|$none/;
    }
    return ($answer, $status);
}

sub value {
    my ($answer, $status) = call(@_);
    die "@_[1 .. $#_]: ", $status // $answer->{error}{message}, "\n" if !$answer || $answer->{error};
    return $answer->{result};
}

sub shown {
    my ($answer) = @_;
    return $answer->{error} ? "$answer->{error}{code} $answer->{error}{data}" : "taken: $answer->{result}";
}

# A busy server may refuse to compute, and says to try again later.
sub computed {
    my ($self, @places) = @_;
    for (;;) {
        my ($answer) = call($self, 'np', @places);
        return $answer->{result} if !$answer->{error};
        die $answer->{error}{message} if $answer->{error}{data} ne 'UNAVAILABLE';
    }
}

# The library makes no batches: this posts one, and returns the answers, or the status line.
sub batch {
    my ($self, @calls) = @_;
    my @batch = map { { id => 1, method => shift @$_, params => $_ } } @calls;
    my $response = $self->{client}->ua->post($self->{url}, Content_Type => 'application/json', Content => encode_json(\@batch));
    return $response->is_success ? decode_json($response->content) : $response->status_line;
}

# Posts a body, which need not be all that is announced, and returns the answer to it.
sub answer_to {
    my ($address, $body, $length) = @_;
    my $connection = Net::HTTP->new(Host => $address, Timeout => PATIENCE) or die $@;
    my @fields = ('Content-Type' => 'application/json');
    push @fields, 'Content-Length' => $length if defined $length;
    $connection->write_request(POST => '/', @fields, $body);
    my ($code) = $connection->read_response_headers;
    my ($answer, $read) = ('', 1);
    $answer .= $_ while $read = $connection->read_entity_body($_, 4096);
    return "$code " . shown(decode_json($answer));
}

# What the answer is as soon as the server has room.
sub admitted {
    my ($ask) = @_;
    for (;;) {
        my $shown = $ask->();
        return $shown if $shown !~ /BUSY/;
    }
}

# Runs this in a process for each of these numbers, and returns what they write.
sub in_processes {
    my ($work, @numbers) = @_;
    pipe my $reads, my $writes or die $!;
    for my $number (@numbers) {
        next if fork // die $!;
        # It ends with its parent.
        close $reads;
        $work->($writes, $number);
        $writes->flush;
        exit;
    }
    close $writes;
    return $reads;
}

sub ask_everything {
    my ($address, $narrow) = @_;
    my $self = client($address);
    my $refused = sub { shown((call($self, @_))[0]) };
    print 'who ', value($self, 'who') > 0 ? 'True' : 'False', "\n";
    print "$_ ", value($self, $_), "\n" for qw(where why ping);
    print 'help ', value($self, 'help', 'add'), "\n";
    print 'add ', value($self, 'add', 2, 5), "\n";
    print 'max ', value($self, 'max', 2, 6), "\n";
    print "np @{computed($self, 9999, 1234, 1, 2, 3, 4)}\n";
    print 'named ', value($self, 'add', { y => 1, x => 2 }), "\n";
    print 'largest ', value($self, 'max', 0, 9007199254740991), "\n";
    print 'usage ', $refused->('add', 'two', 5), "\n";
    print 'range ', $refused->('np', 0), "\n";
    print 'unknown ', $refused->('nothing'), "\n";
    print join(' ', 'batch', map { $_->{result} } @{batch($self, ['add', 1, 2], ['why'])}), "\n";
    print 'batched ', sum(map { $_->{result} } @{batch($self, map { ['add', $_, 1] } 0 .. 999)}), "\n";
    my $fifty = sub {
        my ($writes, $number) = @_;
        my $own = client($address);
        print {$writes} scalar(grep { value($own, 'add', $_, $number) == $_ + $number } 1 .. 50), "\n";
    };
    print 'at once ', sum(readline in_processes($fifty, 1 .. 20)), "\n";
    wait for 1 .. 20;
    # The computations of a batch share half a second.
    my $late = batch(client($address, 0.1), map { [@long] } 1 .. 200);
    print ref $late ? 'in time' : $late =~ /^500 read timeout/ ? 'time-out' : $late, "\n";
    print 'then ', value($self, 'why'), "\n";
    print 'no JSON ', answer_to($address, '{'), "\n";
    print 'no call ', answer_to($address, '{}'), "\n";
    print 'long ', answer_to($address, ' ' x (2**20 + 1)), "\n";
    my %errors = map { (shown($_) => 1) } grep { $_->{error} } @{batch($self, map { [@long] } 1 .. 200)};
    print 'unavailable ', join(',', keys %errors) eq '-32000 UNAVAILABLE' ? 'True' : 'False', "\n";

    my $only = client($narrow);
    print 'only ', value($only, 'who'), "\n";
    print 'busy ', answer_to($narrow, '{}'), "\n";
    # It is closed in the end, which LWP notices itself before the next call.
    my ($connection) = $only->{client}->ua->conn_cache->get_connections;
    IO::Select->new($connection)->can_read(PATIENCE);
    my $idle = admitted(sub { shown((call($only, 'why'))[0]) });
    my ($next) = $only->{client}->ua->conn_cache->get_connections;
    print "idle $idle, ", $next != $connection ? 'True' : 'False', "\n";
    $only->{client}->ua->conn_cache->drop;
    print 'late ', admitted(sub { answer_to($narrow, '{', 9) }), "\n";
}

# A round of calls. Returns whether the server takes more.
sub round_of_calls {
    my ($self, $number) = @_;
    for ((map { [[add => $number, $_], $number + $_] } 0 .. 9), [['why'], 42], [['np', 100], 541]) {
        my ($call, $right) = @$_;
        my ($answer, $status) = call($self, @$call);
        return 0 if !$answer && $status =~ /$closed|$none/;
        my $result = $answer ? $answer->{result} : $status;
        $result = "@$result" if ref $result;
        # On a busy machine a computation may get no turn in time.
        $result = $right if $answer && $answer->{error} && $answer->{error}{data} eq 'UNAVAILABLE';
        push @{$self->{failed}}, "@$call: " . ($result // encode_json($answer)) if ($result // '') ne $right;
        $self->{answered} += 1;
    }
    return 1;
}

# Calls without pause, in a process for each connection, until the server closes it and takes no more.
sub load {
    my ($address, $connections) = @_;
    my @asks;
    my $run = sub {
        my ($writes, $place) = @_;
        $writes->autoflush;
        my $asked = $asks[$place][0];
        close $_->[1] for @asks;
        my $waits = IO::Select->new($asked);
        my $self = client($address);
        @$self{qw(answered failed)} = (0, []);
        my ($number, $is_open) = (0, 1);
        while ($is_open) {
            my $since = $waits->can_read(0) && sysread $asked, my $line, 1;
            $waits->remove($asked) if defined $since && $since eq '0';
            $is_open = round_of_calls($self, $number++);
            print {$writes} "round\n" if $since && $is_open;
        }
        my $retried = $self->{retried} - $self->{unaccepted};
        print {$writes} join(' ', $self->{answered}, $self->{unaccepted}, $retried, encode_json($self->{failed})), "\n";
    };
    pipe $asks[$_][0], $asks[$_][1] or die $! for 0 .. $connections - 1;
    my $reads = in_processes($run, 0 .. $connections - 1);
    my @ended;
    while (<STDIN>) {
        syswrite $_->[1], '.' for @asks;
        for (1 .. $connections - @ended) {
            my $line = readline $reads;
            push @ended, $line if $line ne "round\n";
        }
        print @ended ? "closed\n" : "round\n";
    }
    push @ended, grep { $_ ne "round\n" } readline $reads;
    my @sums = (0, 0, 0);
    my @failed;
    for (@ended) {
        my @numbers = split ' ', $_, 4;
        push @failed, @{decode_json(pop @numbers)};
        $sums[$_] += $numbers[$_] for 0 .. 2;
    }
    print "@sums ", encode_json(\@failed), "\n";
}

STDOUT->autoflush;
my ($use, @rest) = @ARGV;
$use eq 'everything' ? ask_everything(@rest) : load(@rest);
