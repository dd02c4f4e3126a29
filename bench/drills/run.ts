/** Runs `bench drills` and `bench soak`. Both end with exit code 1 if the system broke its promise. */
import { mkdir } from 'node:fs/promises';
import { basename } from 'node:path';
import { Interrupted, interruption } from '../../services/lib/process/interrupt.ts';
import { type OnProgress, run } from '../harness/run.ts';
import { type BenchModel, openModel } from '../system/model.ts';
import { PromptMaker } from '../system/prompts.ts';
import type { DrillsOptions, SoakOptions } from './command.ts';
import { type DrillResult, notRun } from './judge.ts';
import { DRILLS_BENCH, SOAK_BENCH } from './report.ts';
import { runDrill } from './run-drill.ts';
import type { Drill } from './scene.ts';
import { runSoak } from './soak.ts';
import { stagesOf } from './stages.ts';
import { makeReferences, type Reference } from './streams.ts';

export async function runDrillsBench(options: DrillsOptions): Promise<void> {
  // What a drill has made on this machine is removed as the process exits, which a signal alone would not let it do.
  const stop = interruption();
  stop.addEventListener('abort', () => process.exit((stop.reason as Interrupted).exitCode));
  const model = await openModel(options.model, options);
  const settings = { ...options, store: options.redis === undefined ? 'lmdb' : 'redis' };
  const { result } = await run(DRILLS_BENCH, options, { models: [model], settings }, async (onProgress) => ({
    drills: await runDrills(model, options, onProgress),
  }));
  if (result.drills.some(({ broken }) => broken !== '')) process.exitCode = 1;
}

const REFERENCES = 8;

/** Runs the wanted drills, stage after stage. */
async function runDrills(model: BenchModel, options: DrillsOptions, onProgress: OnProgress): Promise<DrillResult[]> {
  const { data, path, only } = options;
  const repo = basename(path);
  await mkdir(data, { recursive: true });
  const wanted = ({ name }: Drill) => only.length === 0 || only.some((word) => name.includes(word));
  const prompts = await PromptMaker.load(repo, path, model.tokenizer);
  const results: DrillResult[] = [];
  let references: Reference[] | undefined;
  for (const stage of stagesOf(model, { ...options, repo })) {
    const drills = stage.drills.filter(wanted);
    // The first stage is opened in any case: before its drills, it gives the answers that all later ones must give.
    if (references && drills.length === 0) continue;
    onProgress(`starting ${stage.name}`);
    const ground = await stage.open(references ?? []);
    if (typeof ground === 'string') {
      results.push(...drills.map((drill) => notRun(drill, ground)));
      continue;
    }
    try {
      references ??= await makeReferences(ground.fleet, prompts, REFERENCES);
      for (const drill of drills) {
        onProgress(drill.name);
        results.push(await runDrill(drill, ground.references ?? references, ground, options));
      }
    } finally {
      await ground.close();
    }
  }
  return results;
}

export async function runSoakBench(options: SoakOptions): Promise<void> {
  const model = await openModel(options.model, options);
  const stop = interruption();
  const { result } = await run(SOAK_BENCH, options, { models: [model], settings: options }, (onProgress) =>
    runSoak(model, { ...options, repo: basename(options.path), onProgress, stop }),
  );
  if (result.broken !== '') process.exitCode = 1;
  else if (stop.reason instanceof Interrupted) process.exitCode = stop.reason.exitCode;
}
