/** The words after `llavacode bench drills` and `llavacode bench soak`. What they run is loaded when it is run. */
import { mkdir, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { Command, InvalidArgumentError } from 'commander';
import { PACKAGE_ROOT } from '../../services/lib/process/config.ts';

const positive = (text: string): number => {
  const value = Number(text);
  if (!(value > 0)) throw new InvalidArgumentError('a number above 0 is needed.');
  return value;
};
const whole = (text: string): number => {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 1) throw new InvalidArgumentError('a whole number from 1 on is needed.');
  return value;
};

const common = (name: string, description: string) =>
  new Command(name)
    .description(description)
    .option('--model <model>', 'a bundle or a checkpoint', join(PACKAGE_ROOT, 'models', 'tiny-coder'))
    .option('--precision <p>', 'of a bundle that is made', 'fp32')
    .option('--path <dir>', 'repository that prompts and chunks come from', join(PACKAGE_ROOT, 'examples', 'shop'))
    .option('--rate <n>', 'requests per second', positive, 4)
    .option('--seed <n>', 'of arrivals and moments', whole, 1)
    .option('--data <dir>', 'where bundles, the index and logs lie', join('.llavacode', 'bench'))
    .option('--json <file>', 'write the figures there');

interface CommonFlags {
  readonly model: string;
  readonly precision: string;
  readonly path: string;
  readonly rate: number;
  readonly seed: number;
  readonly data: string;
  readonly json?: string;
}

export function drillCommands(): Command[] {
  return [
    common('drills', 'kill, stop, cut off and starve parts of a running system, and hold its answers against calm ones')
      .option('--count <n>', 'disturbances of one kind', whole, 2)
      .option('--seconds <n>', 'of a lasting disturbance', positive, 4)
      .option('--only <words>', 'drills whose name holds one of them', (text) => text.split(','), [])
      .option('--redis <url>', 'store to use instead of LMDB; it is written to')
      .action(async ({ count, seconds, only, redis, ...flags }) => {
        const { runDrills } = await import('./run.ts');
        const { drillReport } = await import('./report.ts');
        const how = { count, seconds, only, redis };
        const results = await measured('drills', flags, how, (model, onProgress) =>
          runDrills(model, { ...flags, ...how, repo: basename(flags.path), onProgress }),
        );
        process.stdout.write(`${drillReport(results)}\n`);
        if (results.some(({ broken }) => broken !== '')) process.exitCode = 1;
      }),
    common('soak', 'mixed load with cancels and restarts: does anything grow that should not?')
      .option('--minutes <n>', 'how long', positive, 3)
      .option('--restart-every <seconds>', 'how often a worker is restarted or killed', positive, 20)
      .action(async ({ minutes, restartEvery, ...flags }) => {
        const { runSoak } = await import('./soak.ts');
        const { soakReport } = await import('./report.ts');
        const how = { minutes, restartEverySeconds: restartEvery };
        const result = await measured('soak', flags, how, (model, onProgress) =>
          runSoak(model, { ...flags, ...how, repo: basename(flags.path), onProgress }),
        );
        process.stdout.write(`${soakReport(result)}\n`);
        if (result.broken !== '') process.exitCode = 1;
      }),
  ];
}

/** Runs it with a spinner, and keeps the figures where they were asked for. */
async function measured<T>(
  bench: string,
  flags: CommonFlags,
  settings: object,
  run: (model: import('../system/model.ts').BenchModel, onProgress: (text: string) => void) => Promise<T>,
): Promise<T> {
  const { record } = await import('../report/artifact.ts');
  const { openModel } = await import('../system/model.ts');
  const model = await openModel(flags.model, flags);
  const { default: ora } = await import('ora');
  const spinner = ora({ text: bench, stream: process.stderr }).start();
  const onProgress = (text: string) => {
    spinner.text = `${bench}: ${text}`;
  };
  const command = ['llavacode', ...process.argv.slice(2)].join(' ').replaceAll(`${PACKAGE_ROOT}/`, '');
  const { rate, seed } = flags;
  const artifact = await record({ bench, command, models: [model], settings: { rate, seed, ...settings } }, () =>
    run(model, onProgress),
  ).finally(() => spinner.stop());
  if (flags.json !== undefined) {
    await mkdir(dirname(flags.json), { recursive: true });
    await writeFile(flags.json, `${JSON.stringify(artifact, null, 2)}\n`);
  }
  return artifact.result;
}
