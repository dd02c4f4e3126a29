/** The words after `llavacode bench engine` and `llavacode bench handoff`. What they run is loaded when it is run. */
import { mkdir, writeFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { Command, InvalidArgumentError } from 'commander';
import type { EngineBenchOptions } from './engine.ts';

const wholes = (text: string): number[] =>
  text.split(',').map((part) => {
    const value = Number(part);
    if (!Number.isInteger(value) || value < 1) throw new InvalidArgumentError('whole numbers from 1 on, with commas.');
    return value;
  });
const whole = (text: string): number => {
  const [value, ...more] = wholes(text);
  if (more.length > 0) throw new InvalidArgumentError('one number.');
  return value!;
};

export function engineCommand(): Command {
  return new Command('engine')
    .description('the bare engine: no HTTP, no RPC')
    .requiredOption('--model <model>', 'a bundle, a checkpoint, or the name of a published shape')
    .option('--precision <p>', 'of a bundle that is made', 'int4')
    .option('--prefill-precision <p>', 'of its weights for prompts: same or w8a8')
    .option('--data <dir>', 'where made bundles lie', join('.llavacode', 'bench'))
    .option('--prompt <tokens>', 'lengths of prompts', wholes, [500, 2000])
    .option('--chunk <tokens>', 'sizes of their chunks', wholes, [512])
    .option('--batch <n>', 'sequences of a decode step', wholes, [1, 2, 4, 8])
    .option('--context <tokens>', 'that each of them holds', wholes, [500])
    .option('--repeats <n>', 'of every cell', whole, 7)
    .option('--threads <n>', 'of the engine', whole, availableParallelism())
    .option('--spin', 'let idle threads spin', false)
    .option('--prepacked <dir>', "where prepacked weights lie; within the bundle when not given, 'off' for none", '')
    .option('--seed <n>', 'of the order of cells', whole, 1)
    .option('--json <file>', 'write the figures there')
    .action(async ({ model, prompt, chunk, batch, context, json, data, precision, prefillPrecision, ...how }) => {
      const cells = { prompts: prompt, chunks: chunk, batches: batch, contexts: context };
      await run(model, { data, precision, prefillPrecision }, { ...cells, ...how }, json);
    });
}

export function handoffCommand(): Command {
  return new Command('handoff')
    .description('a KV cache from one process to another over gRPC on loopback: no model, no scheduler')
    .option('--layers <n>', 'of the cache; by default the shape of qwen2.5-coder-0.5b', whole, 24)
    .option('--kv-heads <n>', 'of a layer', whole, 2)
    .option('--head-dim <n>', 'values of one head', whole, 64)
    .option('--positions <n>', 'tokens', whole, 2010)
    .option('--repeats <n>', 'of every kind of wire', whole, 21)
    .option('--json <file>', 'write the figures there')
    .action(async ({ layers, kvHeads, headDim, positions, repeats, json }) => {
      const { handoffReport, measureHandoff } = await import('./handoff.ts');
      const { WIRE_TYPES } = await import('../../services/lib/kv/wire.ts');
      const { describeEnvironment } = await import('../system/environment.ts');
      const environment = await describeEnvironment();
      const options = { layout: { layers, kvHeads, headDim }, positions, types: WIRE_TYPES, repeats };
      const cells = await measureHandoff(options);
      process.stdout.write(`${handoffReport(cells)}\n`);
      if (json !== undefined) await write(json, { bench: 'handoff', environment, options, cells });
    });
}

async function run(
  name: string,
  made: { readonly data: string; readonly precision: string; readonly prefillPrecision?: string },
  how: Omit<EngineBenchOptions, 'bundle' | 'onProgress'>,
  json: string | undefined,
): Promise<void> {
  const { engineReport, measureEngine, STEPS } = await import('./engine.ts');
  const { record } = await import('../report/artifact.ts');
  const { openModel } = await import('../system/model.ts');
  const model = await openModel(name, made);
  const { default: ora } = await import('ora');
  const spinner = ora({ text: 'engine', stream: process.stderr }).start();
  const command = ['llavacode', ...process.argv.slice(2)].join(' ');
  const settings = { ...how, steps: STEPS };
  const artifact = await record({ bench: 'engine', command, models: [model], settings }, () =>
    measureEngine({
      ...how,
      bundle: model.bundle,
      onProgress: (text) => {
        spinner.text = `engine: ${text}`;
      },
    }),
  ).finally(() => spinner.stop());
  process.stdout.write(`${engineReport(artifact.result)}\n`);
  if (json !== undefined) await write(json, artifact);
}

async function write(file: string, figures: unknown): Promise<void> {
  await mkdir(dirname(file), { recursive: true });
  await writeFile(file, `${JSON.stringify(figures, null, 2)}\n`);
}
