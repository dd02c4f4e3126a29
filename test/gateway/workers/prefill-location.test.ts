import { expect, test } from 'vitest';
import { choosePrefillLocation } from '../../../services/gateway/workers/prefill-location.ts';

const both = {
  policy: 'auto',
  localTokens: 1000,
  localMaxTokens: 256,
  local: true,
  remote: true,
  remoteIdle: true,
} as const;

test.each([
  ['where there is room at all', { ...both, local: false }, 'remote', 'only_place'],
  ['where there is room at all', { ...both, remote: false, remoteIdle: false }, 'local', 'only_place'],
  ['where a benchmark wants it', { ...both, policy: 'always' }, 'local', 'policy'],
  ['where a benchmark wants it', { ...both, policy: 'never', localTokens: 5 }, 'remote', 'policy'],
  ['at once where it is decoded, if it is short', { ...both, localTokens: 256 }, 'local', 'short_prompt'],
  ['apart from running sequences, if it is long', { ...both, localTokens: 257 }, 'remote', 'long_prompt'],
  ['where it is decoded, if prefill is busy', { ...both, remoteIdle: false }, 'local', 'prefill_busy'],
] as const)('a prompt is computed %s', (_, possible, where, reason) => {
  expect(choosePrefillLocation(possible)).toEqual({ where, reason });
});
