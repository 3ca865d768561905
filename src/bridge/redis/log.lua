-- The ordered log of one room or user. Redis runs a script as a whole, so numbers, messages and what is
-- published never disagree.
--
-- KEYS  1  the numbers: a hash of life, epoch, seq
--       2  the messages: a stream with ids <seq>-<unix ms>
--       3  the life: which server counts, and a name for the time since when it does
--       4  mode door: the stream of the door's entries
-- ARGV  1  mode: append, door, read or renew; greet does nothing else than to see to the life: a new one begins
--          where 6 is 1, since the server was seen to be a replica
--       2  run_id of this server
--       3  an epoch that there never was
--       4  how long the numbers are kept, in seconds
--       5  how long messages are kept, in milliseconds
--       the rest by mode, below
--
-- The first write of each mode is one that Redis refuses when it has no memory left; those behind it then
-- pass. So a script does all or nothing.

local numbers, messages = KEYS[1], KEYS[2]
local mode, run = ARGV[1], ARGV[2]

-- By itself Lua writes large numbers as 1e+15.
local function text(number)
  return string.format('%.0f', number)
end

-- As text: seconds, and the first three of six digits of the microseconds.
local function unix_ms()
  local time = redis.call('TIME')
  return time[1] .. string.sub('00000' .. time[2], -6, -4)
end

-- The numbers of a log are good for one life of one server: whoever was another server's replica meanwhile, be
-- it this one, finds that server's life in its copy, and may lack what was numbered last.
local lived = redis.call('GET', KEYS[3])
local life = lived and string.sub(lived, 1, #run + 1) == run .. ' ' and string.sub(lived, #run + 2)
if not life or life == '' or (mode == 'greet' and ARGV[6] == '1') then
  life = ARGV[3]
  redis.call('SET', KEYS[3], run .. ' ' .. life)
end
if mode == 'greet' then
  return 1
end

-- Only the first entry is taken, and it goes in the same moment: whoever else has read it too, comes too late.
if mode == 'door' then
  local first = redis.call('XRANGE', KEYS[4], '-', '+', 'COUNT', 1)[1]
  if not first or first[1] ~= ARGV[9] then
    return 0
  end
end

-- In another life it never goes on counting.
local log = redis.call('HMGET', numbers, 'life', 'epoch', 'seq')
local epoch, seq = log[2], tonumber(log[3])
-- Lua counts exactly up to 2^53; what is beyond, or no number, nobody has counted.
local begins = mode == 'renew' or log[1] ~= life or not epoch or not (seq and seq >= 0 and seq < 2 ^ 53 - 1)
if begins then
  epoch, seq = ARGV[3], 0
  redis.call('HSET', numbers, 'life', life, 'epoch', epoch, 'seq', '0')
  redis.call('DEL', messages)
end

-- append, door: 6 most messages, 7 channel, 8 origin, 9 members; door: 9 the entry's id, 10 members
if mode == 'append' or mode == 'door' then
  local members = ARGV[#ARGV]
  local number = text(seq + 1)
  local id = number .. '-' .. unix_ms()
  local opening = '{"origin":"' .. ARGV[8] .. '",'
  redis.call('XADD', messages, 'MAXLEN', ARGV[6], id, 'm', opening .. members)
  local log_member = '"log":"' .. epoch .. ':' .. number .. '",'
  local published = redis.pcall('PUBLISH', ARGV[7], opening .. log_member .. members)
  if type(published) == 'table' and published.err then
    -- This user may not publish there: nothing was numbered.
    redis.call('XDEL', messages, id)
    return published
  end
  redis.call('HSET', numbers, 'seq', number)
  redis.call('PEXPIRE', messages, ARGV[5])
  redis.call('EXPIRE', numbers, ARGV[4])
  if mode == 'door' then
    redis.call('XDEL', KEYS[4], ARGV[9])
  end
  return 1
end

-- Under which nothing was said, there are many: whoever looks at a room begins one.
local EMPTY_SECONDS = '3600'
redis.call('EXPIRE', numbers, seq == 0 and EMPTY_SECONDS or ARGV[4])

-- renew: 6 channel of notices, 7 who asks
if mode == 'renew' then
  redis.call('PUBLISH', ARGV[6], epoch .. ' ' .. ARGV[7])
  return 1
end

-- read: 6 channel of notices, 7 since: epoch or empty, 8 since: seq, 9 whether all are wanted otherwise: 1,
--       10 channel of marks, 11 the mark
-- Answer: epoch, seq, unix ms now, and seq, unix ms, text of each message.
local PAGE_MESSAGES, PAGE_BYTES, STEP = 128, 262144, 16

-- Others may hold an epoch that was lost with its key.
if begins then
  redis.call('PUBLISH', ARGV[6], epoch)
end

local now = unix_ms()
local oldest = tonumber(now) - tonumber(ARGV[5])
local from = seq + 1
if ARGV[7] == epoch then
  from = tonumber(ARGV[8]) + 1
elseif ARGV[9] == '1' then
  from = 1
end

local page, count, bytes = {}, 0, 0
while from <= seq and count < PAGE_MESSAGES and bytes < PAGE_BYTES do
  local step = redis.call('XRANGE', messages, text(from), '+', 'COUNT', STEP)
  from = seq + 1
  for _, entry in ipairs(step) do
    local number, ms = string.match(entry[1], '^(%d+)-(%d+)$')
    -- What is too old stands in front: behind a kept message all are given, so that no gap looks like a loss.
    if count > 0 or tonumber(ms) >= oldest then
      count = count + 1
      bytes = bytes + #entry[2][2]
      page[#page + 1], page[#page + 2], page[#page + 3] = number, ms, entry[2][2]
    end
    from = tonumber(number) + 1
    if count >= PAGE_MESSAGES or bytes >= PAGE_BYTES then
      break
    end
  end
end

redis.call('PUBLISH', ARGV[10], ARGV[11])
return { epoch, text(seq), now, page }
