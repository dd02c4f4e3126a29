/** The words after `llavacode bench engine` and `llavacode bench handoff`. What they run is loaded when it is run. */
import { availableParallelism } from 'node:os';
import type { Command } from 'commander';
import { benchWord, count, counts, typed } from '../options.ts';

export function engineCommand(): Command {
  return benchWord('engine', 'the bare engine: no HTTP, no RPC')
    .requiredOption('--model <model>', 'a bundle, a checkpoint, or the name of a published shape')
    .option('--precision <p>', 'of a bundle that is made', 'int4')
    .option('--prefill-precision <p>', 'of its weights for prompts: same or w8a8')
    .option('--prompt <tokens>', 'lengths of prompts', counts, [500, 2000])
    .option('--chunk <tokens>', 'sizes of their chunks', counts, [512])
    .option('--batch <n>', 'sequences of a decode step', counts, [1, 2, 4, 8])
    .option('--context <tokens>', 'that each of them holds', counts, [500])
    .option('--repeats <n>', 'of every cell', count, 7)
    .option('--threads <n>', 'of the engine', count, availableParallelism())
    .option('--spin', 'let idle threads spin', false)
    .option('--prepacked <dir>', "where prepacked weights lie; within the bundle when not given, 'off' for none", '')
    .option('--seed <n>', 'of the order of cells', count, 1)
    .action(async ({ model: name, precision, prefillPrecision, ...flags }) => {
      const { measureEngine, STEPS } = await import('./engine.ts');
      const { openModel } = await import('../system/model.ts');
      const { run } = await import('../harness/run.ts');
      const model = await openModel(name, { data: flags.data, precision, prefillPrecision });
      const { prompt: prompts, chunk: chunks, batch: batches, context: contexts } = flags;
      const { repeats, threads, spin, prepacked, seed } = flags;
      const settings = { prompts, chunks, batches, contexts, repeats, threads, spin, prepacked, seed };
      await run(
        typed(flags),
        { bench: 'engine', models: [model], settings: { ...settings, steps: STEPS } },
        (onProgress) => measureEngine({ ...settings, bundle: model.bundle, onProgress }),
      );
    });
}

export function handoffCommand(): Command {
  return benchWord('handoff', 'a KV cache from one process to another over gRPC on loopback: no model, no scheduler')
    .option('--layers <n>', 'of the cache; by default the shape of qwen2.5-coder-0.5b', count, 24)
    .option('--kv-heads <n>', 'of a layer', count, 2)
    .option('--head-dim <n>', 'values of one head', count, 64)
    .option('--positions <n>', 'tokens', count, 2010)
    .option('--repeats <n>', 'of every kind of wire', count, 21)
    .action(async ({ layers, kvHeads, headDim, positions, repeats, ...flags }) => {
      const { measureHandoff } = await import('./handoff.ts');
      const { WIRE_TYPES } = await import('../../services/lib/kv/wire.ts');
      const { run } = await import('../harness/run.ts');
      const settings = { layout: { layers, kvHeads, headDim }, positions, types: WIRE_TYPES, repeats };
      await run(typed(flags), { bench: 'handoff', models: [], settings }, async () => ({
        cells: await measureHandoff(settings),
      }));
    });
}
