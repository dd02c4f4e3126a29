/** What is known of a rollout, by all gateways alike: which bundle is the candidate, and whose requests it gets. */
import { createHash } from 'node:crypto';
import { z } from 'zod';

export const SHARED_BY = ['session', 'tenant'] as const;

export const rolloutState = z.strictObject({
  /** Folder of the candidate's bundle, on every gateway. */
  bundle: z.string().min(1),
  /** SHA-256 (hex) of the candidate's bundle. */
  fingerprint: z.string().regex(/^[0-9a-f]{64}$/),
  /** host:port of an indexer that serves the candidate's bundle; '' where no side index is to be made. */
  indexer: z.string(),
  /** Share of the requests that the candidate gets, in percent. */
  share: z.number().min(0).max(100),
  /** What stays with one bundle: all requests of a session, or of a tenant. */
  by: z.enum(SHARED_BY),
  /** Whether it has taken the place of the bundle before it, which stays ready to come back. */
  promoted: z.boolean(),
});
export type RolloutState = Readonly<z.infer<typeof rolloutState>>;

/** Who asks. */
export interface Asker {
  readonly tenant: string;
  /** Name of the session; undefined for a request that belongs to none. */
  readonly session: string | undefined;
  /** Id of the request, which stands for its session where it has none. */
  readonly requestId: string;
}

const SCALE = 2 ** 32;

/**
 * Whether a request goes to the candidate: the same for all gateways, and for all requests of a session or tenant. Who
 * has the candidate at some share has it at every larger one.
 */
export function isForCandidate({ fingerprint, share, by, promoted }: RolloutState, asker: Asker): boolean {
  if (promoted || share >= 100) return true;
  const who = by === 'tenant' ? [asker.tenant] : [asker.tenant, asker.session ?? `request ${asker.requestId}`];
  const digest = createHash('sha256')
    .update(JSON.stringify([fingerprint, ...who]))
    .digest();
  return (digest.readUInt32BE(0) / SCALE) * 100 < share;
}
