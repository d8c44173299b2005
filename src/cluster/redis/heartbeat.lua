-- Heartbeat of one server: publishes its count, removes expired servers, and returns the number of clients of all servers. The
-- cost does not depend on the number of servers: the sum is stored, not counted.
--
-- KEYS[1]  Hash. Fields of the cluster:
--            epoch         identifies this state; a state that replaces a lost one has another epoch
--            version       number of changes of the sum
--            total         sum of the counts
--            members       number of servers
--            clock, real   the stored clock and the Redis clock, see below
--            born          time of the stored clock at which this state began
--            told, heard   time (Redis clock) and version of the last announcement to the servers
--            checked       time of the stored clock at which the sum was last recounted
--          Field of each server, m:MEMBER: "SEQUENCE COUNT".
--          Field of each id, o:ID: the incarnation that sent the last heartbeat.
-- KEYS[2]  Sorted set: the time of the stored clock at which each member expires.
-- ARGV     1 id, 2 incarnation, 3 sequence number, 4 count, 5 time to live, 6 longest step of the stored clock, 7 "join", "beat"
--          or "leave", 8 channel for announcements, 9 epoch of a new state, 10 interval between recounts, 11 send time by the
--          Redis clock, 12 time that the server waits for a reply.
--          Times are in milliseconds.
local id, incarnation, sequence, count = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local time_to_live, longest_step, act, channel = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7], ARGV[8]
local member = id .. '/' .. incarnation
-- The state of a cluster without servers expires after this time, which is longer than a hundred heartbeats.
local forget_after = 24 * 3600000

local time = redis.call('TIME')
local real = time[1] * 1000 + math.floor(time[2] / 1000)
-- Reject a heartbeat that was in flight for longer than its server waits for a reply: the server may have left or restarted
-- since. Or the Redis clock was set.
if math.abs(real - tonumber(ARGV[11])) > tonumber(ARGV[12]) then
    return {real}
end

local function read(entry)
    local seq, number = string.match(entry or '', '^(%d+) (%d+)$')
    return tonumber(seq), tonumber(number)
end

local state = redis.call('HMGET', KEYS[1], 'epoch', 'version', 'total', 'members', 'clock', 'real', 'born', 'told', 'heard',
    'm:' .. member, 'o:' .. id, 'checked')
local epoch, version, total, members = state[1], tonumber(state[2]), tonumber(state[3]), tonumber(state[4])
local clock, last, born = tonumber(state[5]), tonumber(state[6]), tonumber(state[7])
local told, heard, own, owner = tonumber(state[8]), tonumber(state[9]), state[10], state[11]
local checked = tonumber(state[12])

-- A state that has lost a part is worthless: start a new one.
local is_whole = epoch and version and total and members and clock and last and born and told and heard and checked and total >= 0
    and members == redis.call('ZCARD', KEYS[2])
-- One heartbeat per interval recounts the sum for all servers, so that the cost per heartbeat does not depend on their number.
if is_whole and clock >= checked + tonumber(ARGV[10]) then
    local sum, number = 0, 0
    local fields = redis.call('HGETALL', KEYS[1])
    for i = 1, #fields, 2 do
        if string.sub(fields[i], 1, 2) == 'm:' then
            local _, clients = read(fields[i + 1])
            sum, number = sum + (clients or 0), number + 1
        end
    end
    is_whole = sum == total and number == members
    checked = clock
end
if not is_whole then
    redis.call('DEL', KEYS[1], KEYS[2])
    epoch, version, total, members, clock, last, born, told, heard, checked = ARGV[9], 0, 0, 0, 0, real, 0, 0, 0, 0
    own, owner = false, false
end

-- The stored clock follows the Redis clock, but never goes back and never jumps ahead by more than one step. So no entry expires
-- because its server could not be heard: all were cut off, Redis was down, or its clock was set.
clock = clock + math.max(0, math.min(real - last, longest_step))

local function remove(other, entry)
    local _, number = read(entry)
    redis.call('HDEL', KEYS[1], 'm:' .. other)
    redis.call('ZREM', KEYS[2], other)
    total = total - (number or 0)
    members = members - 1
    version = version + 1
    local other_id, other_incarnation = string.match(other, '^(.*)/(.*)$')
    if other_id ~= id and redis.call('HGET', KEYS[1], 'o:' .. other_id) == other_incarnation then
        redis.call('HDEL', KEYS[1], 'o:' .. other_id)
    end
end

local shared = 0
if act == 'leave' then
    if own then
        remove(member, own)
    end
    if owner == incarnation then
        redis.call('HDEL', KEYS[1], 'o:' .. id)
    end
    count = 0
else
    local known_sequence, known = read(own)
    if not known then
        total, members, version = total + count, members + 1, version + 1
    elseif sequence <= known_sequence then
        -- A delayed heartbeat: a later one has been processed before it.
        sequence, count = known_sequence, known
    elseif count ~= known then
        total, version = total + count - known, version + 1
    end
    own = sequence .. ' ' .. count
    redis.call('ZADD', KEYS[2], clock + time_to_live, member)
    if owner ~= incarnation then
        local other = owner and id .. '/' .. owner
        local entry = other and redis.call('HGET', KEYS[1], 'm:' .. other)
        if entry and act == 'join' then
            -- The entry of the process before this one. If it is another live server with the same id, its next
            -- heartbeat adds it again.
            remove(other, entry)
        elseif entry then
            shared = 1
        end
        redis.call('HSET', KEYS[1], 'o:' .. id, incarnation)
    end
end

-- Each entry expires once, so this costs no more than the heartbeat that added it.
for _, silent in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', clock, 'LIMIT', 0, 32)) do
    remove(silent, redis.call('HGET', KEYS[1], 'm:' .. silent))
end

-- The more servers receive an announcement, the longer is the pause between two of them.
local pause = 10 + members / 25
local untold, tells = 0, false
if heard ~= version then
    if act == 'leave' or real >= told + pause or real < told then
        told, heard, tells = real, version, true
    else
        untold = math.ceil(told + pause - real)
    end
end

local fields = {'epoch', epoch, 'version', version, 'total', total, 'members', members, 'clock', clock, 'real', real,
    'born', born, 'told', told, 'heard', heard, 'checked', checked}
if act ~= 'leave' then
    fields[#fields + 1] = 'm:' .. member
    fields[#fields + 1] = own
end
redis.call('HSET', KEYS[1], unpack(fields))
-- PUBLISH comes last, because the permission for it may be missing.
if tells then
    redis.call('PUBLISH', channel, table.concat({epoch, version, total, members}, ' '))
end
if act ~= 'beat' or sequence % 100 == 0 then
    redis.call('PEXPIRE', KEYS[1], forget_after)
    redis.call('PEXPIRE', KEYS[2], forget_after)
end
return {real, epoch, version, total, members, count, clock - born, shared, untold}
