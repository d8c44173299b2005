-- One heartbeat of one server: publishes its count, removes who has been silent for too long, and returns how many clients all
-- have together. Its cost doesn't depend on how many servers there are: the sum is kept, not counted.
--
-- KEYS[1]  a hash. Of the cluster: epoch, who tells this state from one that was lost; version, how often the sum has changed;
--          total, the sum; members, how many servers; clock and real, see below; born, when the state began by that clock; told and
--          heard, when and at which version the servers were told last; checked, when the sum was counted last. Of each server: m:MEMBER, "SEQUENCE COUNT". Of each id:
--          o:ID, the incarnation that beat last.
-- KEYS[2]  a sorted set: until when each member is taken for alive, by the clock.
-- ARGV     1 id, 2 incarnation, 3 sequence number, 4 count, 5 time to live, 6 the longest step of the clock, 7 "join", "beat" or
--          "leave", 8 the channel on which the servers are told, 9 an epoch if one begins, 10 how often the
--          sum is counted, 11 the time at which it was sent, by the clock of Redis, 12 how long somebody waits for its reply.
--          Times are in milliseconds.
local id, incarnation, sequence, count = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local time_to_live, longest_step, act, channel = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7], ARGV[8]
local member = id .. '/' .. incarnation
-- A cluster without servers is forgotten after so long; a hundred heartbeats take less.
local forget_after = 24 * 3600000

local time = redis.call('TIME')
local real = time[1] * 1000 + math.floor(time[2] / 1000)
-- It was under way for so long that nobody waits for it any more: its server may have gone since, or begun anew. Or the clock
-- was set.
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

-- A part that was lost makes the rest worthless: all begin anew.
local is_whole = epoch and version and total and members and clock and last and born and told and heard and checked and total >= 0
    and members == redis.call('ZCARD', KEYS[2])
-- Once in a while it is counted, for all servers together, so that no heartbeat costs more for it.
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

-- The clock follows that of Redis, but never goes back, and never so far ahead at once that somebody dies who could not be
-- heard: when all were cut off, when Redis was away, when its clock was set.
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
        -- It was on its way for so long that a later one has come before it.
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
            -- The process that this one follows. If it is another server of the same id, it will beat again.
            remove(other, entry)
        elseif entry then
            shared = 1
        end
        redis.call('HSET', KEYS[1], 'o:' .. id, incarnation)
    end
end

-- Each is removed once, so that this costs no more than they did when they came.
for _, silent in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', clock, 'LIMIT', 0, 32)) do
    remove(silent, redis.call('HGET', KEYS[1], 'm:' .. silent))
end

-- The more servers there are to be told, the more is told at a time.
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
-- The last, because a right may be missing.
if tells then
    redis.call('PUBLISH', channel, table.concat({epoch, version, total, members}, ' '))
end
if act ~= 'beat' or sequence % 100 == 0 then
    redis.call('PEXPIRE', KEYS[1], forget_after)
    redis.call('PEXPIRE', KEYS[2], forget_after)
end
return {real, epoch, version, total, members, count, clock - born, shared, untold}
