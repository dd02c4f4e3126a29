/**
 * Whether a prompt is computed where it will be decoded, if a worker there can do both, or on a prefill worker, from
 * which its KV is then handed over. A long prompt beside running sequences delays each of their tokens; a short one
 * delays them by less than the hand-over costs.
 */

export const LOCAL_PREFILL = ['auto', 'always', 'never'] as const;
type LocalPrefill = (typeof LOCAL_PREFILL)[number];

export interface PrefillLocations {
  readonly policy: LocalPrefill;
  /** Tokens that would have to be computed where the prompt is decoded: those that are not cached there. */
  readonly localTokens: number;
  /** Longest prompt that is computed beside running sequences, in tokens, while another worker could take it. */
  readonly localMaxTokens: number;
  /** Whether a worker that can do both has room. */
  readonly local: boolean;
  /** Whether a prefill worker that cannot decode has room. */
  readonly remote: boolean;
  /** Whether a prefill-only worker is idle. */
  readonly remoteIdle: boolean;
}

type LocationReason = 'only_place' | 'policy' | 'short_prompt' | 'long_prompt' | 'prefill_busy';

export interface PrefillLocation {
  readonly where: 'local' | 'remote';
  readonly reason: LocationReason;
}

/** @param possible where the prompt can be computed: local, remote or both. */
export function choosePrefillLocation(possible: PrefillLocations): PrefillLocation {
  const { policy, localTokens, localMaxTokens, local, remote, remoteIdle } = possible;
  if (!local) return { where: 'remote', reason: 'only_place' };
  if (!remote) return { where: 'local', reason: 'only_place' };
  if (policy !== 'auto') return { where: policy === 'always' ? 'local' : 'remote', reason: 'policy' };
  if (localTokens <= localMaxTokens) return { where: 'local', reason: 'short_prompt' };
  return remoteIdle ? { where: 'remote', reason: 'long_prompt' } : { where: 'local', reason: 'prefill_busy' };
}
