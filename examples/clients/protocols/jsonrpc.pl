#!/usr/bin/perl
# Asks blockchain-tcpd over JSON-RPC: perl jsonrpc.pl URL. README.md, beside this file, says how to run it.
use strict;
use warnings;

use JSON::RPC::Legacy::Client;

my ($url) = @ARGV;
my $client = JSON::RPC::Legacy::Client->new;

sub call {
    my ($method, @parameters) = @_;
    my $answer = $client->call($url, { id => 1, method => $method, params => \@parameters });
    die 'no answer: ' . $client->status_line . "\n" unless $answer;
    return $answer;
}

print 'add 2 5: ', call('add', 2, 5)->result, "\n";
print "primes 9999 1234 1: @{call('np', 9999, 1234, 1)->result}\n";
my $answer = call('add', 9223372036854775807, 1);
print 'add 9223372036854775807 1: ', $answer->content->{error}{message}, "\n" if $answer->is_error;
