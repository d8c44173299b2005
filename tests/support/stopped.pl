# Twenty clients of a service that is stopped, for tests/package: each is answered first, and then sees an end, not a reset.
use strict;
use warnings;
use IO::Socket::INET;

my @clients = map { IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => 4242) or die "connect: $!" } 1 .. 20;
for my $client (@clients) {
    syswrite($client, "WHY\n");
    sysread($client, my $reply, 9) or die "no reply: $!";
    $reply eq "42\n" or die "not 42: $reply";
}
system('systemctl stop blockchain-tcpd.socket blockchain-tcpd.service') == 0 or die 'systemctl stop';
for my $client (@clients) {
    my $read = sysread($client, my $more, 9);
    defined $read or die "a reset: $!";
    $read == 0 or die "more: $more";
}
