import { inspect } from 'node:util';
import { describe, expect, test } from 'vitest';
import { isRedisUrl, parseRedisUrl } from '../../services/lib/redis/url.ts';

describe('the URL of a Redis', () => {
  test.each([
    [
      'redis://host',
      { kind: 'single', tls: false, nodes: [{ host: 'host', port: 6379 }], db: 0, shown: 'redis://host' },
    ],
    ['redis://host:7000/3', { nodes: [{ host: 'host', port: 7000 }], db: 3, shown: 'redis://host:7000/3' }],
    ['redis://[::1]:7000', { nodes: [{ host: '::1', port: 7000 }] }],
    ['rediss://u:p@host', { tls: true, username: 'u', password: 'p', shown: 'rediss://host' }],
    ['redis://:p%40ss%2F:x@host', { username: undefined, password: 'p@ss/:x', shown: 'redis://host' }],
    ['redis://u@host', { username: 'u', password: undefined }],
    [
      'rediss+sentinel://u:p@a,b:26380,[fe80::1]:26381/main/2?sentinel_user=s&sentinel_password=q%26&ca=/etc/ca.pem',
      {
        kind: 'sentinel',
        tls: true,
        nodes: [
          { host: 'a', port: 26379 },
          { host: 'b', port: 26380 },
          { host: 'fe80::1', port: 26381 },
        ],
        master: 'main',
        db: 2,
        sentinelUsername: 's',
        sentinelPassword: 'q&',
        caFile: '/etc/ca.pem',
        shown: 'rediss+sentinel://a,b:26380,[fe80::1]:26381/main/2',
      },
    ],
    [
      'redis+cluster://a:1,b:2',
      {
        kind: 'cluster',
        nodes: [
          { host: 'a', port: 1 },
          { host: 'b', port: 2 },
        ],
        db: 0,
      },
    ],
  ])('the URL %s is read in full', (url, expected) => {
    expect(parseRedisUrl(url)).toMatchObject(expected);
  });

  test.each([
    'http://host',
    'redis:host',
    'redis://',
    'redis://:secret@',
    'redis://:secret@host:port',
    'redis://:secret@host:0',
    'redis://:secret@host:65536',
    'redis://:secret@a,b',
    'redis://:secret@host/x',
    'redis://:secret@host/1/2',
    'redis://:secret%@host',
    'redis://:secret@host?db=1',
    'redis+sentinel://:secret@host',
    'redis+sentinel://:secret@host/',
    'redis+cluster://:secret@host/1',
    'redis+other://:secret@host',
    'redis://user:secret@word@host',
  ])('the URL %s is refused without naming a secret', (url) => {
    let error: unknown;
    try {
      parseRedisUrl(url);
    } catch (thrown) {
      error = thrown;
    }
    expect(error).toMatchObject({ code: 'config_invalid' });
    expect(inspect(error)).not.toContain('secret%');
    expect((error as Error).message).not.toContain('secret');
  });
});

test.each([
  ['redis://host', true],
  ['rediss+sentinel://a,b/main', true],
  ['redis+cluster://a:1', true],
  ['redis://', false],
  ['redis:6379', false],
  ['lmdb:redis://', false],
  ['https://redis', false],
])('the beginning of %s tells whether it means a Redis server', (text, expected) => {
  expect(isRedisUrl(text)).toBe(expected);
});
