/**
 * Whether a prompt is computed where it will be decoded, if a worker there can do both, or on a prefill worker, from which
 * its KV then travels. A long prompt beside running sequences makes each of their tokens wait; a short one does so less
 * than the hand-over costs.
 */

export const LOCAL_PREFILL = ['auto', 'always', 'never'] as const;
export type LocalPrefill = (typeof LOCAL_PREFILL)[number];

export interface PrefillLocations {
  readonly policy: LocalPrefill;
  /** Tokens that would be computed where the prompt is decoded: those that are cached there are not. */
  readonly localTokens: number;
  /** Longest prompt that is computed beside running sequences for its own sake, in tokens. */
  readonly localMaxTokens: number;
  /** A worker that can do both has room. */
  readonly local: boolean;
  /** A prefill worker that cannot decode has room, and whether one of them has nothing to do. */
  readonly remote: boolean;
  readonly remoteIdle: boolean;
}

export type LocationReason = 'only_place' | 'policy' | 'short_prompt' | 'long_prompt' | 'prefill_busy';

export interface PrefillLocation {
  readonly where: 'local' | 'remote';
  readonly reason: LocationReason;
}

/** @param possible local or remote, or both. */
export function choosePrefillLocation(possible: PrefillLocations): PrefillLocation {
  const { policy, localTokens, localMaxTokens, local, remote, remoteIdle } = possible;
  if (!local) return { where: 'remote', reason: 'only_place' };
  if (!remote) return { where: 'local', reason: 'only_place' };
  if (policy !== 'auto') return { where: policy === 'always' ? 'local' : 'remote', reason: 'policy' };
  if (localTokens <= localMaxTokens) return { where: 'local', reason: 'short_prompt' };
  return remoteIdle ? { where: 'remote', reason: 'long_prompt' } : { where: 'local', reason: 'prefill_busy' };
}
