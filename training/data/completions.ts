/**
 * The targets of distillation: what the language model writes greedily where it reads the chunks of a sample as text.
 * They are computed once on the serving engine, before the first step, and kept by the content of the prompt.
 */
import { join } from 'node:path';
import { z } from 'zod';
import { makeFolder } from '../../services/lib/process/os-errors.ts';
import { PROMPTS_PER_SLOT, type Rollouts } from '../step/rollouts.ts';
import { contentKey, KeptLines } from './lines.ts';
import type { DataRow } from './rows.ts';
import type { SampleMaker } from './samples.ts';

type Ids = readonly number[];
const completionSchema = z.object({ ids: z.array(z.number().int().nonnegative()).min(1).readonly() });

interface CompletionSettings {
  /** Folder in which completions of all models are kept, in one file for each model and limit. */
  readonly dir: string;
  /** The limit of `rollouts`, which the completions depend on. */
  readonly tokens: number;
  /** Prompts that decode together: completions of other numbers together may differ in rare ties. */
  readonly together: number;
}

/**
 * The completion of each row by the name of the row. Ids that end an answer belong to it.
 * @param onProgress told how far it is, in words
 * @throws ServingError context_length_exceeded, training_diverged, path_unusable, runtime_failed; the signal's reason.
 */
export async function textCompletions(
  rows: readonly DataRow[],
  samples: SampleMaker,
  rollouts: Rollouts,
  { dir, tokens, together }: CompletionSettings,
  onProgress: (text: string) => void,
  signal?: AbortSignal,
): Promise<ReadonlyMap<string, Ids>> {
  await makeFolder(dir);
  const ofModel = contentKey(rollouts.digest, tokens, samples.format.stopIds).slice(0, 16);
  const kept = await KeptLines.open(join(dir, `completions-${ofModel}.jsonl`), completionSchema);
  const found = new Map<string, Ids>();
  for (let start = 0; start < rows.length; start += PROMPTS_PER_SLOT * together) {
    const group = rows.slice(start, start + PROMPTS_PER_SLOT * together).map((row) => {
      const sample = samples.withText(row);
      return { row, sample, key: contentKey(sample.promptIds) };
    });
    // The whole group is computed where one is missing: a run that was killed then finds the same bits as one that was
    // not, whatever was kept of the group.
    if (group.some(({ key }) => kept.get(key) === undefined)) {
      onProgress(`completing with chunks as text: ${start} of ${rows.length} samples`);
      const written = await rollouts.greedy(
        group.map(({ sample }) => sample),
        group.map(() => new Float32Array(0)),
        signal,
      );
      await kept.add(new Map(group.map(({ key }, i) => [key, { ids: written[i]! }])));
    }
    for (const { row, key } of group) found.set(row.name, kept.get(key)!.ids);
  }
  return found;
}
