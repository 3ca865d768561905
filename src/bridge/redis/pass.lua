-- Takes the first entry out of the door, and publishes it where messages have no numbers. Answers 0 when
-- another was faster.
-- KEYS  1  the stream of the door's entries
-- ARGV  1  the entry's id, 2 channel, 3 message; without those two the entry is dropped
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if not first or first[1] ~= ARGV[1] then
  return 0
end
if ARGV[2] then
  redis.call('PUBLISH', ARGV[2], ARGV[3])
end
return redis.call('XDEL', KEYS[1], ARGV[1])
