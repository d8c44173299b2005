# Clients of a server on port 4242, for tests/package: 100 that stay and ask, and 50 new ones a second, until there is a file
# load.stop. Runs in a minimal Debian, which has no other language. Prints what became of them.
use strict;
use warnings;
use IO::Socket::INET;
use Errno qw(ECONNREFUSED);
use Time::HiRes qw(sleep time);

my %count = (new => 0, refused => 0, reset => 0, wrong => 0, asked => 0, closed => 0, late => 0);
my $slowest = 0;
$SIG{PIPE} = 'IGNORE';

sub client {
    my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => 4242, Timeout => 20);
    return $socket if $socket;
    $count{refused}++ if $! == ECONNREFUSED;
    $count{late}++ if $! != ECONNREFUSED;
    return;
}

# One that comes, asks once, shuts down its side, and reads to the end.
sub visit {
    my $begun = time;
    my $socket = client() or return;
    my $reply = '';
    eval {
        local $SIG{ALRM} = sub { die "late\n" };
        alarm 20;
        syswrite($socket, "WHY\n");
        shutdown($socket, 1);
        my $read;
        while ($read = sysread($socket, my $bytes, 100)) { $reply .= $bytes }
        alarm 0;
        $count{defined $read ? ($reply eq "42\n" ? 'new' : 'wrong') : 'reset'}++;
        1;
    } or $count{late}++;
    my $time = time - $begun;
    $slowest = $time if $time > $slowest;
}

# Five processes, ten new clients a second each, and twenty that stay.
my @children;
for my $number (1 .. 5) {
    pipe(my $reader, my $writer) or die "pipe: $!";
    my $pid = fork;
    die "fork: $!" unless defined $pid;
    if ($pid == 0) {
        my @held = map { client() } 1 .. 20;
        my $next = time;
        while (!-e 'load.stop') {
            visit();
            # One of those that stay asks; who was closed comes again.
            my $held = shift @held;
            if ($held && syswrite($held, "WHY\n")) {
                my ($read, $bytes);
                eval {
                    local $SIG{ALRM} = sub { die "late\n" };
                    alarm 20;
                    $read = sysread($held, $bytes, 100);
                    alarm 0;
                    1;
                } or $count{late}++;
                if ($read && $bytes eq "42\n") { $count{asked}++ }
                else { $count{closed}++; $held = client() }
            } else { $held = client() }
            push @held, $held if $held;
            $next += 0.1;
            my $pause = $next - time;
            sleep $pause if $pause > 0;
        }
        print $writer join(' ', map { "$_=$count{$_}" } sort keys %count), " slowest=$slowest\n";
        exit 0;
    }
    close $writer;
    push @children, $reader;
}
$| = 1;
print "begun\n";
my %sum;
for my $reader (@children) {
    for my $pair (split ' ', <$reader> // '') {
        my ($name, $value) = split /=/, $pair;
        if ($name eq 'slowest') { $slowest = $value if $value > $slowest }
        else { $sum{$name} += $value }
    }
}
1 while wait > 0;
my $milliseconds = sprintf '%.0f', $slowest * 1000;
print "clients: new=$sum{new} refused=$sum{refused} reset=$sum{reset} wrong=$sum{wrong} late=$sum{late}",
    " stayed-asked=$sum{asked} stayed-closed=$sum{closed} slowest-ms=$milliseconds\n";
