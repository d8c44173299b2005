package main;
my $client = Client->new('127.0.0.1', PORT, 20);
eval { $client->ask(sub { die "enough\n" }, 'WHO', 'WHERE') };
$client->ask(sub { print "$_[1]\n" }, 'PING');
