# A server on port 4243 that means harm, for tests/package: of five clients the first is told nothing; the second is answered
# once and then cut off in the middle of a reply; the third is reset; the fourth is left alone in the middle of a reply; the
# fifth is answered byte by byte.
use strict;
use warnings;
use IO::Socket::INET;
use Socket qw(SOL_SOCKET SO_LINGER);
use Time::HiRes qw(sleep);

$SIG{CHLD} = $SIG{PIPE} = 'IGNORE';
my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 4243, Listen => 10, ReuseAddr => 1) or die "listen: $!";
$| = 1;
print "listening\n";

for (my $number = 0; ; $number = ($number + 1) % 5) {
    my $client = $server->accept or die "accept: $!";
    my $child = fork // die "fork: $!";
    next if $child;
    close $server;
    $client->autoflush(1);
    alarm 60;
    if ($number == 1) {
        my $request = <$client>;
        print $client "to $request";
        $request = <$client>;
        print $client 'to AS';
    } elsif ($number == 2) {
        setsockopt($client, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0));
    } elsif ($number == 4) {
        while (my $request = <$client>) {
            for my $byte (split //, "to $request") {
                print $client $byte;
                sleep 0.001;
            }
        }
    } else {
        print $client 'to A' if $number == 3;
        # Until the client has gone.
        1 while sysread($client, my $ignored, 4096);
    }
    close $client;
    exit;
}
