/** The drill of more indexes than fit: they come and go, and the gateway keeps within its memory. */
import { existsSync, readFileSync } from 'node:fs';
import { streamCompletion } from '../../services/client.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { publishMade } from './made-repository.ts';
import type { Drill, Scene } from './scene.ts';
import { TIMEOUT_MS } from './streams.ts';

/** The gateway's --index-cache-bytes in this drill. */
export const INDEX_CACHE_BYTES = 48 << 20;
/** What the gateway may grow by: what it caches, and garbage of what it reads. */
const GROWTH_BYTES = INDEX_CACHE_BYTES + (144 << 20);
const REPOSITORIES = 20;
const CHUNKS = 1_500;
/** As many as a chunk can have; each is in one chunk alone. */
const IDENTIFIERS = 256;

const identifier = (repository: number, at: number) => `id_${at.toString(36)}_${repository}`;

function* largeRepositories() {
  for (let r = 0; r < REPOSITORIES; r++) {
    const chunks = Array.from({ length: CHUNKS }, (_, c) => {
      const tokens = Array.from({ length: IDENTIFIERS }, (_, t) => identifier(r, c * IDENTIFIERS + t));
      return { tokens, text: `chunk ${c}` };
    });
    yield { key: `large-${r}`, chunks };
  }
}

async function thrash({ fleet, store, references, mark }: Scene): Promise<string> {
  const gateway = fleet.of('gateway')[0]!;
  await publishMade(store, references[0]!.body.rag!.repo, largeRepositories());
  const { pid } = gateway.process;
  const before = peakBytes(pid);
  mark();
  const asked = Array.from({ length: REPOSITORIES }, async (_, r) => {
    const prompt = `x = ${identifier(r, 1)}\ny = ${identifier(r, 2)}\n`;
    const body = { prompt, max_tokens: 1, rag: { repo: `large-${r}`, mode: 'compressed' } };
    const { rag } = await streamCompletion(fleet.url, body, AbortSignal.timeout(TIMEOUT_MS), fleet);
    return rag?.degraded ?? 'with context';
  });
  const outcomes = await Promise.allSettled(asked);
  const failed = outcomes.flatMap((each) =>
    each.status === 'rejected' ? ServingError.from(each.reason, 'worker_lost').code : [],
  );
  if (gateway.process.pid !== pid) throw new Error('the gateway died of the indexes that it was asked for');
  if (failed.length > 0) throw new Error(`${failed.length} of ${REPOSITORIES} requests failed: ${failed[0]}`);
  const grown = peakBytes(pid) - before;
  const found = `${REPOSITORIES} large indexes cost the gateway ${(grown / 2 ** 20).toFixed(0)} MiB`;
  if (grown > GROWTH_BYTES) throw new Error(`${found}, more than ${GROWTH_BYTES >> 20}`);
  return found;
}

/** The most memory that a process has had so far, as the kernel counts it. */
function peakBytes(pid: number | undefined): number {
  const [, kibibytes] = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8')) ?? [];
  return Number(kibibytes) * 1024;
}

export const INDEX_DRILLS: readonly Drill[] = [
  {
    name: 'more indexes than fit',
    impossible: ({ storeLink }) => {
      if (storeLink) return 'needs LMDB';
      return existsSync('/proc/self/status') ? undefined : 'needs /proc';
    },
    disturb: thrash,
  },
];
