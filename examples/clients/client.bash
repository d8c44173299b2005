#!/usr/bin/env bash
# A client of blockchain-tcpd in bash 4.4 or later, with nothing but bash: no netcat, no other program.
#
#     bash client.bash [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]
#
# What is above "The program" is to be copied, what is below shows its use. README.md, beside this file, says what both do.
# What bash can't do: it can't bound how long the name server takes, can't tell why there is no connection, and drops bytes of
# the value zero without a word.
LC_ALL=C

longest_request=1023 # bytes, without the line end
longest_reply=4096   # bytes: a server that sends longer lines speaks something else
batch_size=4096      # bytes of requests sent at once: the system takes them even when the server reads none
attempts=5           # in a row without a reply, before it gives up
pause=100            # milliseconds before the second attempt, and twice as long before each further one

connection= # the descriptor, while there is a connection
reply=      # the latest line of the server
word=       # the word of the latest ERR,
sentence=   # and what it says
trouble=    # why something was not answered

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
    return "${2:-69}"
}

connect() {
    local watch connected=
    # Bash has no time-out for this, but a signal interrupts it: one for each address of the name.
    trap : ALRM
    { while doze "$timeout" && kill -ALRM $$; do :; done; } <&- >&- 2>&- &
    watch=$!
    { exec {connection}<>"/dev/tcp/$host/$port"; } 2>/dev/null && connected=yes
    kill "$watch" 2>/dev/null
    wait "$watch" 2>/dev/null
    [ -z "$connected" ] || return 0
    connection=
    lost "no connection"
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
        BUSY) lost "the server is busy: $sentence" 75 ;;
        TIMEOUT) lost "the server closed the connection: $sentence" ;;
    esac
}

# Asks as many of $requests, from $answered on, as are sent at once, and calls $take for each reply.
exchange() {
    # Nobody was asked anything: what has come is the end, or last words, or no reply to what is asked next.
    [ -z "$connection" ] || ! read -r -t 0 <&"$connection" || disconnect
    [ -n "$connection" ] || connect || return
    local lines='' asked
    for ((asked = answered; asked < ${#requests[@]}; asked++)); do
        [ $((${#lines} + ${#requests[asked]})) -lt $batch_size ] || break
        lines+=${requests[asked]}$'\n'
    done
    # By another shell: if the connection is broken, a signal ends whoever writes.
    # If it fails, what there is to read says why.
    (printf %s "$lines") 2>/dev/null >&"$connection"
    while [ "$answered" -lt "$asked" ]; do
        receive_reply || return
        "$take" "${requests[answered]}"
        answered=$((answered + 1)) failures=0
    done
}

# ask FUNCTION REQUEST...: calls the function for each reply in order, with the request; the reply is in $reply, $word and
# $sentence. If something was not answered it returns an exit status, and says why in $trouble.
ask() {
    local take=$1 requests=("${@:2}") request answered=0 failures=0 status
    for request in "${requests[@]}"; do
        [[ ${#request} -le $longest_request && $request == *[\!-~]* && $request != *[!$'\t'\ -~]* ]] || {
            trouble="not a request: $request"
            return 64
        }
    done
    while [ "$answered" -lt ${#requests[@]} ]; do
        exchange && continue
        status=$?
        failures=$((failures + 1))
        [ $failures -lt $attempts ] || return $status
        doze $((pause << failures - 1))
    done
}

# To be called when nothing has been asked for a while, or the server closes the connection.
keep_alive() { ask must_be_pong PING; }
must_be_pong() { [ "$reply" = PONG ] || disconnect; }

# The program.

print_reply() {
    if [ -n "$word" ]; then
        echo "$1: $word: $sentence" >&2
        refused=1
    else
        printf '%s\t%s\n' "$1" "$reply" || exit 74
    fi
}

# Returns the exit status that this comes to.
ask_and_print() {
    local refused=0 status
    ask print_reply "$@" && return $refused
    status=$?
    [ $status != 64 ] || wrong "$trouble"
    echo "client: $host:$port: $trouble" >&2
    return $status
}

# Waits so many milliseconds, and keeps the connection alive meanwhile.
wait_for() {
    local left
    for ((left = $1; left > keepalive; left -= keepalive)); do
        doze "$keepalive"
        # If it fails, the next request says so, if it still is so then.
        keep_alive
    done
    doze "$left"
}

wrong() {
    printf 'usage: client [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]\nclient: %s\n' "$1" >&2
    exit 64
}

# Sets the variable to this number of seconds in milliseconds: whole numbers are all that bash counts with.
milliseconds() {
    local number=0
    [[ ! $2 =~ ^([0-9]{0,7})(\.([0-9]+))?$ ]] || printf -v number %d%.3s "$((10#0${BASH_REMATCH[1]}))" "${BASH_REMATCH[3]}000"
    number=$((10#$number))
    [ "$number" -ge 1 ] && [ "$number" -le 1000000000 ] || wrong "not a number of seconds: $2"
    printf -v "$1" %d "$number"
}

main() {
    TIMEOUT=${TIMEOUT-2}
    local repeat=0
    if [ $# -gt 1 ] && [ "$1" = --repeat ]; then
        milliseconds repeat "$2"
        shift 2
    fi
    [ $# -ge 3 ] && [[ $1 == [^-]* ]] || wrong "nothing to ask"
    host=$1 port=$2
    [[ $port =~ ^[0-9]{1,5}$ && 10#$port -ge 1 && 10#$port -le 65535 ]] || wrong "not a port: $port"
    shift 2
    milliseconds timeout "$TIMEOUT"
    milliseconds keepalive "${KEEPALIVE-60}"

    while [ "$repeat" != 0 ]; do
        ask_and_print "$@"
        wait_for "$repeat"
    done
    ask_and_print "$@"
}

main "$@"
