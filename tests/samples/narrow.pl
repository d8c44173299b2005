# A server with next to no room for what it has not read and for what is not read of it, and that makes clients keep as little:
# it has them send in segments as small as may be. It tells its port, and answers one client, the first requests with 4,000 bytes.
use strict;
use warnings;
use IO::Socket::INET;
use Socket qw(IPPROTO_TCP SOL_SOCKET SO_RCVBUF SO_SNDBUF TCP_MAXSEG);

alarm 60;
my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 0, Listen => 1) or die "listen: $!";
setsockopt($server, SOL_SOCKET, $_, 4096) or die "a buffer: $!" for SO_RCVBUF, SO_SNDBUF;
setsockopt($server, IPPROTO_TCP, TCP_MAXSEG, 536) or die "a segment: $!";
$| = 1;
print $server->sockport, "\n";
my $client = $server->accept or die "accept: $!";
$client->autoflush(1);
while (my $request = <$client>) {
    chomp $request;
    # It reads the next when this has been taken.
    print $client substr($request x 5, 0, $. <= 60 ? 4000 : 4), "\n";
}
