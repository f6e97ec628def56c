-- Buckets of all pods: the same as those of one pod (bucket.rs), at the store's own time.
--
-- KEYS: one for each limit. ARGV, five for each: its group; the units that the request takes, below 0 to give them back; the units of a
-- token; those that come back in a microsecond; those that the bucket holds.
--
-- Group 0 is what is enforced. Where a bucket of it refuses, nothing is taken at all. Each other group is a policy that only counts: it takes
-- something where all of it admits.
--
-- The answer has three numbers for each limit: microseconds until it admits the request (0: now), whole tokens that are left, microseconds until
-- the bucket is full.
--
-- A value is "missing units, since when, units of a token", and goes when the bucket is full again.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local buckets, refuses = {}, {}
for n, key in ipairs(KEYS) do
  local at = (n - 1) * 5
  local bucket = {
    group = ARGV[at + 1], token = tonumber(ARGV[at + 3]), gives = tonumber(ARGV[at + 4]), holds = tonumber(ARGV[at + 5]),
    debt = 0, since = now
  }
  local debt, since, token = string.match(redis.call('GET', key) or '', '^(%d+) (%d+) (%d+)$')
  if debt then
    -- As many tokens are missing where another version of the policy has counted.
    debt = tonumber(debt) * bucket.token / tonumber(token)
    -- The clock of another store may have been ahead.
    bucket.since = math.max(tonumber(since), now)
    bucket.debt = math.max(0, debt - (bucket.since - tonumber(since)) * bucket.gives)
  end
  bucket.wanted = math.max(0, bucket.debt + tonumber(ARGV[at + 2]))
  bucket.wait = math.ceil(math.max(0, bucket.wanted - bucket.holds) / bucket.gives)
  if tonumber(ARGV[at + 2]) > 0 and bucket.wait > 0 then
    refuses[bucket.group] = true
  end
  buckets[n] = bucket
end
local answer = {}
for n, bucket in ipairs(buckets) do
  local debt = bucket.debt
  if not refuses['0'] and not refuses[bucket.group] then
    debt = bucket.wanted
    local ms = string.format('%.0f', math.ceil(debt / bucket.gives / 1000) + 1)
    redis.call('SET', KEYS[n], string.format('%.0f %.0f %.0f', debt, bucket.since, bucket.token), 'PX', ms)
  end
  answer[#answer + 1] = bucket.wait
  answer[#answer + 1] = math.floor(math.max(0, bucket.holds - debt) / bucket.token)
  answer[#answer + 1] = math.ceil(debt / bucket.gives)
end
return answer
