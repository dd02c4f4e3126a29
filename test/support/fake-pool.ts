/** A worker pool over workers that answer what the test says. */
import { stat } from 'node:fs';
import { WorkerPool, type WorkerPoolOptions } from '../../services/gateway/workers/worker-pool.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import type { DecodeClient, PrefillClient } from '../../services/lib/rpc/contract.ts';
import { keepingLog } from './keeping-log.ts';

/** Fingerprint of the pool's own bundle. */
export const OURS = 'a'.repeat(64);

interface Says {
  fingerprint?: string;
  capacity?: number;
  slots?: number;
  freeSlots?: number;
  queued?: number;
  prefillTokensPerSecond?: number;
  overdueMs?: number;
  device?: string;
  kvFolder?: string;
  stepMs?: number[];
}

/** A pool whose workers answer with what `answers` holds for their address now; 'nothing' makes one hang. */
export type Answers = Record<string, Says | Error | 'nothing' | 'by socket'>;

/** @param options of the pool, where the test has its own. */
export function fakePool(
  answers: Answers,
  prefill: string[],
  decode: string[],
  options: Partial<WorkerPoolOptions> = {},
) {
  const closed: string[] = [];
  /** Addresses of the workers that were asked what they are, one for each question. */
  const asked: string[] = [];
  const client = (address: string) =>
    ({
      describe: async (signal: AbortSignal) => {
        asked.push(address);
        const answer = answers[address];
        if (answer === undefined) throw new ServingError('worker_lost', `${address}: refused`);
        if (answer === 'nothing') {
          await new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
        }
        if (answer instanceof Error) throw answer;
        if (answer === 'by socket') {
          await new Promise((resolve, reject) => {
            signal.addEventListener('abort', () => reject(signal.reason));
            stat('.', resolve); // resolves in the phase of the event loop in which sockets are read
          });
        }
        const described = { fingerprint: OURS, capacity: 100, slots: 4, freeSlots: 4, queued: 0 };
        return { ...described, prefillTokensPerSecond: 0, overdueMs: 0, ...(answer as Says) };
      },
      close: () => closed.push(address),
    }) as unknown as PrefillClient & DecodeClient;
  const workers = new WorkerPool({
    fingerprint: OURS,
    connectPrefill: client,
    connectDecode: client,
    connectTimeoutMs: 5,
    stallTimeoutMs: 1000,
    localPrefill: 'auto',
    localPrefillTokens: 256,
    log: keepingLog([]),
    ...options,
  });
  workers.setPrefill(prefill);
  workers.setDecode(decode);
  /** Places the prompt and its first sequence, then the others as long as there is room. */
  const place = (promptTokens = 1, sequences = 1) => {
    const request = { promptTokens, continues: sequences > 0, positions: 10 };
    const placement = workers.place(request);
    if (placement === undefined) return undefined;
    const decodes = placement.decode ? [placement.decode] : [];
    while (decodes.length < sequences) {
      const more = workers.placeOneMore(request, placement);
      if (more === undefined) break;
      decodes.push(more);
    }
    return { prefill: placement.prefill, decodes };
  };
  /** Like {@link place}, for tests in which there must be room. */
  const take = (promptTokens?: number, sequences?: number) => place(promptTokens, sequences)!;
  return { workers, place, take, closed, asked };
}
