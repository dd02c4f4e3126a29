import { describe, expect, test } from 'vitest';
import { demandGuard, isLoopback } from '../../services/lib/process/exposure.ts';

test.each([...(['127.0.0.1', '127.255.0.9', 'localhost', 'LOCALHOST', '::1', '::ffff:127.0.0.1'] as const)])(
  '%s is this machine',
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
])('%s is not', (host) => expect(isLoopback(host)).toBe(false));

describe('a service that asks nobody who they are', () => {
  test('listens to its own machine alone, unless the operator says otherwise', () => {
    const guard = (host: string, guarded: boolean, insecureListen = false) =>
      demandGuard({ host, insecureListen }, guarded, '--api-keys-file');
    guard('127.0.0.1', false);
    guard('0.0.0.0', true);
    guard('0.0.0.0', false, true);
    expect(() => guard('0.0.0.0', false)).toThrowError(/0\.0\.0\.0.*--api-keys-file.*--insecure-listen/);
  });
});
