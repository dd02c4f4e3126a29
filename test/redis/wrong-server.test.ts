import { expect, test } from 'vitest';
import { parseRedisUrl } from '../../services/lib/redis/url.ts';
import {
  isFromClusterNode,
  isFromOtherServer,
  mastersOf,
  parseInfo,
  remedyFor,
  useClusterUrl,
  useSentinelUrl,
} from '../../services/lib/redis/wrong-server.ts';

test.each([
  "READONLY You can't write against a read only replica.",
  "READONLY You can't write against a read only replica. script: 51cb35b7, on @user_script:3.",
  "ERR Error running script (call to f_51cb35b7): @user_script:3: @user_script: 3: -READONLY You can't write against a read only replica.",
  "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
  'LOADING Redis is loading the dataset in memory',
  'NOREPLICAS Not enough good replicas to write.',
])('the answer "%s" says that another server must be asked', (text) => {
  expect(isFromOtherServer(new Error(text))).toBe(true);
  expect(isFromClusterNode(new Error(text))).toBe(false);
  const transaction = Object.assign(new Error('EXECABORT Transaction discarded'), {
    previousErrors: [new Error(text)],
  });
  expect(isFromOtherServer(transaction)).toBe(true);
  const cluster = Object.assign(new Error('Failed to refresh slots cache.'), { lastNodeError: new Error(text) });
  expect(isFromOtherServer(cluster)).toBe(true);
});

test.each([
  'MOVED 3999 127.0.0.1:6381',
  'ASK 3999 127.0.0.1:6381',
  'CLUSTERDOWN Hash slot not served',
  'TRYAGAIN Multiple keys request during rehashing of slot',
  "CROSSSLOT Keys in request don't hash to the same slot",
])('the answer "%s" comes from a node of a cluster', (text) => {
  expect(isFromClusterNode(new Error(text))).toBe(true);
  expect(isFromOtherServer(new Error(text))).toBe(false);
});

test.each([
  'OOM command not allowed when used memory > maxmemory',
  "NOPERM this user has no permissions to run the 'readonly' command",
  "ERR unknown command 'READONLY ', with args beginning with: ",
  'WRONGTYPE Operation against a key holding the wrong kind of value',
  'Connection is closed.',
])('the answer "%s" is the failure of one command', (text) => {
  expect(isFromOtherServer(new Error(text))).toBe(false);
  expect(isFromClusterNode(new Error(text))).toBe(false);
});

test.each([
  ['redis://user:pass@node:7000/3', 'redis+cluster://node:7000', 'redis+sentinel://node:7000/MASTER'],
  ['rediss://node', 'rediss+cluster://node', 'rediss+sentinel://node/MASTER'],
])('the URL %s of another kind of server is corrected', (url, cluster, sentinel) => {
  const address = parseRedisUrl(url);
  expect(useClusterUrl(address)).toBe(`the server is a node of a cluster, use ${cluster}`);
  expect(useSentinelUrl(address)).toBe(`the server is a sentinel, use ${sentinel}`);
  expect(remedyFor(new Error('MOVED 1 h:1'), address)).toBe(`: ${useClusterUrl(address)}`);
});

test('the client of a cluster, which follows redirections by itself, is not told to use a cluster', () => {
  expect(remedyFor(new Error('MOVED 1 h:1'), parseRedisUrl('redis+cluster://node'))).toBe('');
});

test('the role of a server is read from INFO', () => {
  const master = '# Server\r\nredis_mode:standalone\r\nloading:0\r\nrole:master\r\ncluster_enabled:0\r\n';
  expect(parseInfo(master)).toEqual({
    role: 'master',
    upToDate: true,
    loading: false,
    clusterNode: false,
    sentinel: false,
  });
  const replica = 'redis_mode:cluster\r\nloading:1\r\nrole:slave\r\nmaster_link_status:down\r\ncluster_enabled:1\r\n';
  expect(parseInfo(replica)).toEqual({
    role: 'replica',
    upToDate: false,
    loading: true,
    clusterNode: true,
    sentinel: false,
  });
  expect(parseInfo('redis_mode:sentinel\r\n')).toMatchObject({ role: 'unknown', sentinel: true });
  expect(mastersOf('cluster_state:ok\r\ncluster_size:3\r\n')).toBe(3);
  expect(mastersOf('')).toBe(0);
});
