/** The process of a training worker: it loads one graph, and runs it for its parent (graph-workers.ts). */
import { OrtSession } from '../../services/lib/engine/ort.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import type { WorkerAnswer, WorkerTask } from './graph-workers.ts';

let session: OrtSession | undefined;

async function perform(task: WorkerTask): Promise<WorkerAnswer> {
  if (task.do === 'beat') return { beats: true };
  if (task.do === 'load') {
    const { path, threads, packWeights } = task;
    session = await OrtSession.load(path, { threads, packWeights });
    return { loaded: session.outputs };
  }
  if (session === undefined) throw new Error('no graph is loaded: the first task must be load');
  return { done: await session.run(task.inputs, task.outputs) };
}

process.on('message', (task: WorkerTask) => {
  perform(task).then(
    (answer) => process.send?.(answer),
    (error: unknown) => process.send?.({ failed: ServingError.from(error).message } satisfies WorkerAnswer),
  );
});
// Ctrl-C reaches the whole group of processes, and so may SIGTERM. The parent decides what becomes of its workers.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => {});
process.on('disconnect', () => process.exit(0));
