/**
 * Drills of rows in Redis that are huge or damaged: those of one tenant must not harm another, nor the client that
 * asks.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { streamCompletion } from '../../services/client.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { keysOf } from '../../services/lib/rag/store/redis-keys.ts';
import { repoKey } from '../../services/lib/rag/store/repo-key.ts';
import { encodeContent } from '../../services/lib/rag/store/row.ts';
import { RedisConnection } from '../../services/lib/redis/connection.ts';
import type { RandomStream } from '../measure/arrivals.ts';
import type { Door } from '../system/tenants.ts';
import { attacker, attackFor } from './hostile-tenants.ts';
import { publishMade } from './made-repository.ts';
import type { Drill, Scene } from './scene.ts';
import { TIMEOUT_MS } from './streams.ts';

/** 400 rows of 40 KiB: one retrieval reads a hundred of them. */
const FAT = { chunks: 400, bytes: 40 << 10, identifiers: 60, retrieved: 100, clients: 8 };

const word = (chunk: number, at: number) => `fat_${chunk}_${at}`;

async function readFatRows(scene: Scene): Promise<string> {
  const { fleet, store, references } = scene;
  const chunks = Array.from({ length: FAT.chunks }, (_, chunk) => {
    const tokens = Array.from({ length: FAT.identifiers }, (_, at) => word(chunk, at));
    return { tokens, text: `${tokens.join(' ')} ${'z'.repeat(FAT.bytes)}` };
  });
  const key = repoKey(fleet.tenants[1]!.name, 'fat');
  await publishMade(store, references[0]!.body.rag!.repo, [{ key, chunks }]);
  const meter = await attackFor(scene, {
    name: 'fat rows',
    backlogged: false,
    run: async ({ door, random, meter, until }) => {
      const client = async () => {
        while (!until.aborted) {
          await retrieveFat(door, random, until).catch((error: unknown) => {
            if (!until.aborted) meter.refused(ServingError.from(error, 'worker_lost').code);
            return sleep(100);
          });
        }
      };
      await Promise.all(Array.from({ length: FAT.clients }, client));
    },
  });
  const { refused } = meter.read();
  return refused > 0 ? `${refused} requests of the tenant with fat rows were refused` : 'its rows harmed nobody';
}

/** Asks with ten lines, which name identifiers of a hundred chunks. */
function retrieveFat({ url, apiKey }: Door, random: RandomStream, until: AbortSignal) {
  const first = random.below(FAT.chunks);
  const line = (i: number) =>
    Array.from({ length: 10 }, (_, j) => word((first + 10 * i + j) % FAT.chunks, 1)).join(' ');
  const prompt = `${Array.from({ length: 10 }, (_, i) => line(i)).join('\n')}\n`;
  const rag = { repo: 'fat', mode: 'compressed', top_k: FAT.retrieved };
  const body = { prompt, max_tokens: 1, truncate_prompt_tokens: 16, rag };
  return streamCompletion(url, body, AbortSignal.any([until, AbortSignal.timeout(TIMEOUT_MS)]), { apiKey });
}

const POISONED = { chunks: 20, identifiers: 8 };
/** The half-precision number that is not a number, and the place of the first value of a row's vector. */
const [NAN_HALF, FIRST_VALUE_AT] = [0x7e00, 8];

/** The fault is the store's: the request goes on, without what is damaged. */
async function readPoisonedRows({ fleet, store, references, mark }: Scene): Promise<string> {
  const chunks = Array.from({ length: POISONED.chunks }, (_, chunk) => {
    const tokens = Array.from({ length: POISONED.identifiers }, (_, at) => word(chunk, at));
    return { tokens, text: tokens.join(' ') };
  });
  const { name, apiKey } = fleet.tenants[1]!;
  const key = repoKey(name, 'poisoned');
  const { head, ids } = await publishMade(store, references[0]!.body.rag!.repo, [{ key, chunks }]);
  const redis = new RedisConnection(store);
  try {
    for (const [i, chunk] of chunks.entries()) {
      const row = { chunk: { ...chunk, id: ids[0]![i]!, path: 'f.py', startLine: 1, endLine: 2 } };
      const content = encodeContent({ ...row, vector: new Float32Array(head.hidden) });
      content.writeUInt16LE(NAN_HALF, FIRST_VALUE_AT);
      const field = Buffer.from(ids[0]![i]!, 'hex');
      await redis.run((client) => client.hset(keysOf(key).rows(head.fingerprint), field, content), 'away');
    }
  } finally {
    await redis.close();
  }
  mark();
  const found = new Set<string>();
  for (let i = 0; i < POISONED.chunks; i++) {
    const rag = { repo: 'poisoned', mode: 'compressed' };
    const body = { prompt: `${word(i, 1)} ${word(i, 2)}\n`, max_tokens: 8, rag };
    const answer = await streamCompletion(attacker(fleet).url, body, AbortSignal.timeout(TIMEOUT_MS), { apiKey }).catch(
      (error: unknown) => {
        throw new Error(`a completion failed because of a row: ${ServingError.from(error).message}`, { cause: error });
      },
    );
    found.add(answer.rag?.degraded ?? `${answer.rag?.chunks.length} chunks`);
  }
  if ([...found].every((each) => each === 'over_budget'))
    throw new Error('no retrieval was quick enough to read a row');
  return `completions went on with ${[...found].join(', ')}`;
}

/** Drills on a Redis that belongs to the drills. */
export const ROW_DRILLS: readonly Drill[] = [
  { name: 'fat rows of another tenant', keepsContext: true, disturb: readFatRows },
  { name: 'rows that are not numbers', disturb: readPoisonedRows },
];
