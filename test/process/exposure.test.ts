import { describe, expect, test } from 'vitest';
import { assertGuarded, isLoopback, reachableAddress } from '../../services/lib/process/exposure.ts';

test.each([...(['127.0.0.1', '127.255.0.9', 'localhost', 'LOCALHOST', '::1', '::ffff:127.0.0.1'] as const)])(
  'only this machine can reach a service that listens on %s',
  (host) => expect(isLoopback(host)).toBe(true),
);

test.each([
  ...([
    '0.0.0.0',
    '::',
    '10.0.0.1',
    '128.0.0.1',
    '127.example.org',
    '127.0.0.1.example.org',
    'gateway',
    '::2',
  ] as const),
])('other machines can reach a service that listens on %s', (host) => expect(isLoopback(host)).toBe(false));

describe('a service that asks nobody who they are', () => {
  test('a service that asks nobody for proof listens on its own machine only, unless the operator says otherwise', () => {
    const guard = (host: string, guarded: boolean, insecureListen = false) =>
      assertGuarded({ host, insecureListen }, guarded, '--api-keys-file');
    guard('127.0.0.1', false);
    guard('0.0.0.0', true);
    guard('0.0.0.0', false, true);
    expect(() => guard('0.0.0.0', false)).toThrowError(/0\.0\.0\.0.*--api-keys-file.*--insecure-listen/);
  });
});

describe('the address that others are told', () => {
  const of = (family: 'IPv4' | 'IPv6', address: string, internal = false) =>
    ({ family, address, internal, netmask: '', mac: '', cidr: null, scopeid: 0 }) as const;
  const machine = { lo: [of('IPv4', '127.0.0.1', true)], eth0: [of('IPv6', 'fd00::7'), of('IPv4', '10.1.2.3')] };

  test.each([
    ['127.0.0.1:9000', '', '127.0.0.1:9000'],
    ['10.9.9.9:9000', '', '10.9.9.9:9000'],
    ['0.0.0.0:9000', 'prefill-0.pool:9000', 'prefill-0.pool:9000'],
    ['0.0.0.0:9000', '', '10.1.2.3:9000'],
    ['[::]:9000', '', '10.1.2.3:9000'],
  ])('a worker that listens on %s and advertises %j is reached at %s', (listening, advertise, told) => {
    expect(reachableAddress(listening, advertise, machine)).toBe(told);
  });

  test('a worker on a machine without IPv4 is reached at its IPv6 address', () => {
    expect(reachableAddress('[::]:9000', '', { eth0: [of('IPv6', 'fd00::7')] })).toBe('[fd00::7]:9000');
  });

  test('a worker on a machine without a network is reached at its loopback address', () => {
    expect(reachableAddress('0.0.0.0:9000', '', { lo: machine.lo })).toBe('127.0.0.1:9000');
  });
});
