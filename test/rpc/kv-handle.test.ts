/** Handles that a decode worker believes, and those that it does not. */
import { expect, test } from 'vitest';
import { SystemSecret } from '../../services/lib/process/system-secret.ts';
import type { KvHandle__Output } from '../../services/lib/rpc/gen/llavacode/v1/KvHandle.ts';
import { assertSealed, sealHandle } from '../../services/lib/rpc/kv-handle.ts';

const secret = new SystemSecret('s'.repeat(64));
const plain = { address: '10.0.0.1:9000', leaseId: 'lease', fingerprint: 'f'.repeat(64), positions: 7, leaseMs: 1000 };
const sealed = sealHandle(plain, secret) as KvHandle__Output;
const unsealed = { ...plain, seal: Buffer.alloc(0) };
const untrusted = expect.objectContaining({ code: 'kv_handle_untrusted', message: expect.stringContaining('lease') });

test('a handle is believed as the prefill worker gave it', () => {
  expect(() => assertSealed(sealed, secret)).not.toThrow();
});

test.each(Object.keys(plain) as (keyof typeof plain)[])('a handle with another %s is not believed', (field) => {
  const changed = { ...sealed, [field]: typeof plain[field] === 'number' ? 8 : `${plain[field]}0` };
  expect(() => assertSealed(changed, secret)).toThrow(untrusted);
});

test('a handle without a seal, or with one of another system, is not believed', () => {
  expect(() => assertSealed(unsealed, secret)).toThrow(untrusted);
  const others = sealHandle(plain, new SystemSecret('o'.repeat(64))) as KvHandle__Output;
  expect(() => assertSealed(others, secret)).toThrow(untrusted);
});

test('a system without a secret has handles without seals, and believes them', () => {
  expect(sealHandle(plain, undefined)).toEqual(plain);
  expect(() => assertSealed(unsealed, undefined)).not.toThrow();
});
