/**
 * The bare engine in a process of its own, measured on request over IPC. bench/peers starts it beside llama.cpp, and
 * ./bare.ts beside a system, to measure the two in turns. The answer to a {@link Task} is a duration in ms (of loading,
 * of a prompt), a list of them (of decode steps), or bytes of memory.
 */
import { serveTasks } from '../harness/task-process.ts';
import { memoryOf } from './memory.ts';
import { EngineSubject, type SubjectOptions } from './subject.ts';

export type Task =
  | { readonly do: 'load'; readonly options: SubjectOptions }
  | { readonly do: 'prefill'; readonly tokens: number; readonly chunk: number }
  | { readonly do: 'decode'; readonly batch: number; readonly context: number; readonly steps: number }
  | { readonly do: 'memory' };

let subject: EngineSubject | undefined;

async function perform(task: Task): Promise<unknown> {
  if (task.do === 'memory') return memoryOf();
  if (task.do === 'load') {
    subject = await EngineSubject.load(task.options);
    return subject.loadMs;
  }
  if (subject === undefined) throw new Error('no model is loaded: the first task must be load');
  if (task.do === 'prefill') return subject.prefill(task.tokens, task.chunk);
  return subject.decode(task.batch, task.context, task.steps);
}

serveTasks(perform);
