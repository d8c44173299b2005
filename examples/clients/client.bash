#!/usr/bin/env bash
# A client of blockchain-tcpd in bash 4.4 or later, with nothing but bash: no netcat, no other program.
#
#     bash client.bash [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]
#
# Its functions connect to any address of a name, within a time-out; send many requests at once and match their replies,
# however these are cut into packets; tell an ERR from a value; keep the connection alive with PING; and, when it is lost,
# make a new one and ask again what was not answered. README.md, beside this file, says what is printed and when.
# What bash can't do: it can't bound how long the name server takes, and it drops bytes of the value zero without a word.
LC_ALL=C

longest_reply=4096 # bytes: a server that sends longer lines speaks something else
batch_size=4096    # bytes of requests sent at once: the system takes them even when the server reads none
attempts=5         # in a row without a reply, before it gives up
pauses=(0 100 200 400 800)

connection= # the descriptor, while there is a connection
reply=      # the latest line of the server
word=       # the word of the latest ERR,
sentence=   # and what it says
trouble=    # why there is no connection
busy=       # set if that is because the server has no room

# Nobody writes into this pipe.
exec {silence}<> <(:)

# Sleeps so many milliseconds without a program, so that a signal is heard; one that comes just before a read, after it.
doze() {
    local left seconds
    for ((left = $1; left > 0; left -= 500)); do
        printf -v seconds 0.%03d $((left < 500 ? left : 500))
        read -r -t "$seconds" <&"$silence"
    done
    return 0
}

disconnect() {
    [ -z "$connection" ] || exec {connection}>&-
    connection=
}

# Says why, and fails.
lost() {
    trouble=$1
    disconnect
    return 1
}

connect() {
    local watch connected=
    # Bash has no time-out for this, but a signal interrupts it.
    { doze "$timeout"; kill -ALRM $$; } <&- >&- 2>&- &
    watch=$!
    { exec {connection}<>"/dev/tcp/$host/$port"; } 2>/dev/null && connected=yes
    kill "$watch" 2>/dev/null
    wait "$watch" 2>/dev/null
    if [ -z "$connected" ]; then
        connection=
        lost "no connection"
    fi
}

# Reads a line into $reply. What comes without a line end is no reply.
receive() {
    IFS= read -r -n $((longest_reply + 1)) -t "$TIMEOUT" reply 2>/dev/null <&"$connection"
    case $? in
        0) [[ ${#reply} -le $longest_reply && $reply != *[!\ -~]* ]] || lost "the server sent something that is no reply" ;;
        1) lost "the server closed the connection" ;;
        *) lost "no reply in time" ;;
    esac
}

# Reads a reply. If it is an ERR, there is something in $word.
receive_reply() {
    word='' sentence=''
    receive || return
    [[ $reply == 'ERR '* ]] || return 0
    read -r _ word sentence <<<"$reply"
    # These two are about the connection, whatever was asked, and the server closes after them.
    case $word in
        BUSY) busy=yes && lost "the server is busy: $sentence" ;;
        TIMEOUT) lost "the server closed the connection: $sentence" ;;
    esac
}

# Asks those of $requests from $answered on, and calls $take for each reply.
exchange() {
    # Nobody was asked anything: what has come is the end, or last words, or no reply to what is asked next.
    [ -z "$connection" ] || ! read -r -t 0 <&"$connection" || disconnect
    busy=
    [ -n "$connection" ] || connect || return
    local lines asked
    while [ "$answered" -lt ${#requests[@]} ]; do
        lines=
        for ((asked = answered; asked < ${#requests[@]}; asked++)); do
            [ -z "$lines" ] || [ $((${#lines} + ${#requests[asked]} + 1)) -le $batch_size ] || break
            lines+=${requests[asked]}$'\n'
        done
        printf %s "$lines" 2>/dev/null >&"$connection" || lost "can't send" || return
        while [ "$answered" -lt "$asked" ]; do
            receive_reply || return
            "$take" "${requests[answered]}"
            answered=$((answered + 1)) failures=0
        done
    done
}

# ask FUNCTION REQUEST...: calls the function for each reply in order, with the request; the reply is in $reply, $word and
# $sentence. It fails when there is no connection; why, is in $trouble.
ask() {
    local take=$1 requests=("${@:2}") answered=0 failures=0
    until exchange; do
        failures=$((failures + 1))
        [ $failures -lt $attempts ] || return
        doze "${pauses[failures]}"
    done
}

# To be called when nothing has been asked for a while, or the server closes the connection.
keep_alive() { ask must_be_pong PING; }
must_be_pong() { [ "$reply" = PONG ] || disconnect; }

print_reply() {
    if [ -n "$word" ]; then
        echo "$1: $word: $sentence" >&2
        refused=1
    else
        printf '%s\t%s\n' "$1" "$reply"
    fi
}

# Leaves the exit status that it comes to in $latest.
ask_and_print() {
    refused=0
    if ask print_reply "$@"; then
        latest=$refused
    else
        echo "client.bash: $host:$port: $trouble" >&2
        latest=${busy:+75}
        latest=${latest:-69}
    fi
}

wrong() {
    printf 'usage: bash client.bash [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]\nclient.bash: %s\n' "$1" >&2
    exit 64
}

must_be_seconds() {
    [[ $1 =~ ^[0-9]{0,6}(\.?[0-9]+)$ && $1 =~ [1-9] && ${1%%.*} -le 1000000 ]] || wrong "not a number of seconds: $1"
}

# Whole numbers are all that bash counts with: a thousand of them make a second.
milliseconds() {
    local fraction=
    [[ $1 != *.* ]] || fraction=${1#*.}
    fraction=${fraction}000
    echo $((10#0${1%%.*} * 1000 + 10#${fraction:0:3}))
}

main() {
    TIMEOUT=${TIMEOUT-2} KEEPALIVE=${KEEPALIVE-60}
    local repeat= request left timeout keepalive status=0
    if [ $# -gt 1 ] && [ "$1" = --repeat ]; then
        must_be_seconds "$2"
        repeat=$2
        shift 2
    fi
    [ $# -ge 3 ] && [[ $1 != -* ]] || wrong "nothing to ask"
    host=$1 port=$2
    [[ $port =~ ^[0-9]{1,5}$ && 10#$port -ge 1 && 10#$port -le 65535 ]] || wrong "not a port: $port"
    shift 2
    # A line without a word would get no reply; a line end, or too long a line, would be something else.
    for request; do
        [[ $request == *[\!-~]* && $request != *[!$'\t'\ -~]* && ${#request} -le 1023 ]] || wrong "not a request: $request"
    done
    must_be_seconds "$TIMEOUT"
    must_be_seconds "$KEEPALIVE"
    timeout=$(milliseconds "$TIMEOUT")
    keepalive=$(milliseconds "$KEEPALIVE")
    [ -z "$repeat" ] || repeat=$(milliseconds "$repeat")

    trap : ALRM
    trap '' PIPE
    if [ -z "$repeat" ]; then
        ask_and_print "$@"
        exit "$latest"
    fi
    trap 'exit $status' INT TERM
    while :; do
        ask_and_print "$@"
        [ "$latest" = 0 ] || status=1
        for ((left = repeat; left > keepalive; left -= keepalive)); do
            doze "$keepalive"
            # If it fails, the next request says so, if it still is so then.
            keep_alive
        done
        doze "$left"
    done
}

main "$@"
