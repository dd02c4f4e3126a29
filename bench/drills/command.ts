/** The words after `llavacode bench drills` and `llavacode bench soak`. What they run is loaded when it is run. */
import { basename, join } from 'node:path';
import type { Command } from 'commander';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { benchWord, count, list, positive, typed } from '../options.ts';

const common = (name: string, description: string) =>
  benchWord(name, description)
    .option('--model <model>', 'a bundle or a checkpoint', join(PACKAGE_ROOT, 'models', 'tiny-coder'))
    .option('--precision <p>', 'of a bundle that is made', 'fp32')
    .option('--path <dir>', 'repository that prompts and chunks come from', join(PACKAGE_ROOT, 'examples', 'shop'))
    .option('--rate <n>', 'requests per second', positive, 4)
    .option('--seed <n>', 'of arrivals and moments', count, 1);

export function drillCommands(): Command[] {
  return [
    common('drills', 'kill, stop, cut off and starve parts of a running system, and hold its answers against calm ones')
      .option('--count <n>', 'disturbances of one kind', count, 2)
      .option('--seconds <n>', 'of a lasting disturbance', positive, 4)
      .option('--only <words>', 'drills whose name holds one of them', list, [])
      .option('--redis <url>', 'store to use instead of LMDB; it is written to')
      .action(async ({ model: name, precision, path, rate, seed, count, seconds, only, redis, ...flags }) => {
        const { runDrills } = await import('./judge.ts');
        const { openModel } = await import('../system/model.ts');
        const { run } = await import('../harness/run.ts');
        const model = await openModel(name, { data: flags.data, precision });
        const settings = { rate, seed, count, seconds, only };
        const how = { ...settings, path, repo: basename(path), data: flags.data, redis };
        const { result } = await run(
          typed(flags),
          {
            bench: 'drills',
            models: [model],
            settings: { ...settings, store: redis === undefined ? 'lmdb' : 'redis' },
          },
          async (onProgress) => ({ drills: await runDrills(model, { ...how, onProgress }) }),
        );
        if (result.drills.some(({ broken }) => broken !== '')) process.exitCode = 1;
      }),
    common('soak', 'mixed load with cancels and restarts: does anything grow that should not?')
      .option('--minutes <n>', 'how long', positive, 3)
      .option('--restart-every <seconds>', 'how often a worker is restarted or killed', positive, 20)
      .action(async ({ model: name, precision, path, rate, seed, minutes, restartEvery, ...flags }) => {
        const { runSoak } = await import('./soak.ts');
        const { openModel } = await import('../system/model.ts');
        const { run } = await import('../harness/run.ts');
        const model = await openModel(name, { data: flags.data, precision });
        const settings = { rate, seed, minutes, restartEverySeconds: restartEvery };
        const how = { ...settings, path, repo: basename(path), data: flags.data };
        const { result } = await run(typed(flags), { bench: 'soak', models: [model], settings }, (onProgress) =>
          runSoak(model, { ...how, onProgress }),
        );
        if (result.broken !== '') process.exitCode = 1;
      }),
  ];
}
