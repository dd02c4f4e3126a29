/**
 * The process in which the hostile tenants of a soak attack; ./attackers.ts starts it. The answer to `begin` comes at
 * once; the answer to `end`, an {@link AttackReport}, when the attacks have ended.
 */
import { stepBack } from '../../services/lib/process/priority.ts';
import { serveTasks } from '../harness/task-process.ts';
import { ATTACKERS_NICE, type AttackerCounts, attackInTurn, type Rotation } from './hostile-rotation.ts';
import type { AttackTurn } from './waits.ts';

export type AttackTask = { readonly do: 'begin'; readonly rotation: Rotation } | { readonly do: 'end' };

export interface AttackReport {
  readonly attackers: readonly AttackerCounts[];
  /** Times in ms from the beginning. */
  readonly turns: readonly AttackTurn[];
}

const over = new AbortController();
let attacking: Promise<AttackReport> | undefined;

async function attack(rotation: Rotation): Promise<AttackReport> {
  const beganMs = performance.now();
  const turns: AttackTurn[] = [];
  const now = () => performance.now() - beganMs;
  const attackers = await attackInTurn(rotation, over.signal, now, (turn) => turns.push(turn));
  return { attackers, turns };
}

async function perform(task: AttackTask): Promise<AttackReport | undefined> {
  if (task.do === 'begin') {
    stepBack(ATTACKERS_NICE);
    attacking = attack(task.rotation);
    attacking.catch(() => {}); // the answer to `end` says it
    return undefined;
  }
  if (attacking === undefined) throw new Error('nobody attacks: the first task must be begin');
  over.abort();
  return attacking;
}

// Ctrl-C reaches both processes: the soak ends early, and then asks for the report.
process.on('SIGINT', () => {});
serveTasks(perform);
