/** `llavacode rollout`: has a running system serve another bundle beside its own, promotes it, or goes back. */
import { text as textOf } from 'node:stream/consumers';
import { apiKeyOf, refusalAt, unreachable } from './client.ts';
import { bearer, sendRequest } from './http-call.ts';
import type { INDEX_CLIENT_SETTINGS } from './indexer/settings.ts';
import type { ConfigOf } from './lib/process/config.ts';

export type RolloutAction =
  | { readonly action: 'status' }
  | { readonly action: 'promote' }
  | { readonly action: 'rollback' }
  | {
      readonly action: 'start';
      readonly bundle: string;
      /** In percent. undefined: as it is, for a bundle that is the candidate already. So are the fields below. */
      readonly share: number | undefined;
      readonly by: string | undefined;
      /** host:port; '' ends the making of side indexes. */
      readonly indexer: string | undefined;
    };

/** What `/v1/rollout` answers. */
export interface RolloutAnswer {
  readonly phase: 'none' | 'preparing' | 'canary' | 'promoted' | 'done';
  readonly stable: { readonly fingerprint: string };
  readonly candidate: { readonly bundle: string; readonly fingerprint: string } | null;
  readonly share: number;
  readonly by: string | null;
  readonly problem: string | null;
  readonly workers: { readonly prefill: number; readonly decode: number } | null;
  readonly index: { readonly repositories: number; readonly current: number; readonly embedded: number } | null;
}

/** Longest silence of the gateway, in ms. */
const SILENCE_MS = 30_000;

/**
 * Prints how the rollout stands after the action, and returns it.
 * @throws ServingError address_unusable where no gateway answers; what the gateway refuses.
 */
export async function runRollout(
  config: ConfigOf<typeof INDEX_CLIENT_SETTINGS>,
  action: RolloutAction,
  signal: AbortSignal,
): Promise<RolloutAnswer> {
  const { url } = config;
  const key = await apiKeyOf(config);
  const isRead = action.action === 'status';
  const answer = await sendRequest({
    method: isRead ? 'GET' : 'POST',
    url: `${url.replace(/\/+$/, '')}/v1/rollout`,
    headers: { 'content-type': 'application/json', ...bearer(key === '' ? undefined : key) },
    ...(!isRead && { body: JSON.stringify(action) }),
    silenceMs: SILENCE_MS,
    signal,
  }).catch((error: unknown) => {
    signal.throwIfAborted();
    throw unreachable(url, error);
  });
  const text = await textOf(answer);
  if (answer.statusCode !== 200) throw refusalAt(url, text, answer.statusCode ?? 0);
  const status = JSON.parse(text) as RolloutAnswer;
  process.stdout.write(`${inWords(status)}\n`);
  return status;
}

function inWords({ phase, stable, candidate, share, by, problem, workers, index }: RolloutAnswer): string {
  const short = (fingerprint: string) => `${fingerprint.slice(0, 16)}…`;
  if (candidate === null) return `no rollout: ${short(stable.fingerprint)} serves all requests`;
  const name = `${candidate.bundle} (${short(candidate.fingerprint)})`;
  const lines = {
    none: '',
    preparing: `preparing ${name}; it serves nothing yet: ${problem}`,
    canary: `${name} serves ${share} % by ${by}, ${short(stable.fingerprint)} the rest`,
    promoted: `${name} serves all requests; ${short(stable.fingerprint)} is ready to come back`,
    done: `${name} is what this gateway was started with: the rollout is over`,
  };
  const details = [
    workers && `workers: ${workers.prefill} prefill, ${workers.decode} decode`,
    index && `side indexes: ${index.current} of ${index.repositories} repositories, ${index.embedded} chunks encoded`,
  ];
  return [lines[phase], ...details.filter(Boolean)].join('\n');
}
