/** `dataset.json`: the shards of a data set and their digests. `llavacode dataset` writes it, and training reads it. */
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { z } from 'zod';
import { ServingError } from '../../services/lib/process/errors.ts';
import { atPath, reasonOf } from '../../services/lib/process/os-errors.ts';

export const MANIFEST = 'dataset.json';
export const SPLITS = ['train', 'valid'] as const;
export type Split = (typeof SPLITS)[number];

const shardSchema = z.object({
  /** Name in the folder of the data set: a gzip file of JSON lines. */
  file: z.string().regex(/^[\w-]+\.jsonl\.gz$/, 'is not the name of a shard'),
  samples: z.number().int().positive(),
  bytes: z.number().int().positive(),
  /** Of the gzip file, in hex. */
  sha256: z.string().regex(/^[0-9a-f]{64}$/),
});
export type Shard = z.infer<typeof shardSchema>;

const splitSchema = z.object({
  samples: z.number().int().nonnegative(),
  /** SHA-256 over the digests of the shards, in hex. */
  digest: z.string(),
  shards: z.array(shardSchema),
});
const manifestSchema = z.object({
  format: z.literal(1),
  /** The settings that decide which samples there are. */
  recipe: z.record(z.string(), z.unknown()),
  splits: z.object({ train: splitSchema, valid: splitSchema }),
  statistics: z.record(z.string(), z.unknown()),
});
export type Manifest = z.infer<typeof manifestSchema>;

export function digestOfShards(shards: readonly Shard[]): string {
  return createHash('sha256')
    .update(shards.map(({ sha256 }) => `${sha256}\n`).join(''))
    .digest('hex');
}

/** @throws ServingError path_unusable; sample_invalid for a file that is not such a manifest. */
export async function readManifest(path: string): Promise<Manifest> {
  const text = await atPath(`${path}, which each folder of llavacode dataset has`, () => readFile(path, 'utf8'));
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new ServingError('sample_invalid', `${path} is not JSON (${reasonOf(cause)}): make the data set again`, {
      cause,
    });
  }
  const parsed = manifestSchema.safeParse(json);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw new ServingError('sample_invalid', `${path}: ${issue?.path.join('.')}: ${issue?.message}`);
}
