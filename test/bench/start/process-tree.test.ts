import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { expect, it, onTestFinished } from 'vitest';
import { nameOf, processTree, timesIn } from '../../../bench/start/process-tree.ts';

it('the times of a process are read behind its name, whatever the name holds', () => {
  const stat = '71 (a) 9 (b) S 42 71 71 0 -1 4194560 100 200 0 0 12 3 40 5 20 0 11 0 100 200 300';
  expect(timesIn(stat)).toEqual({ parent: 42, cpuMs: 150, endedCpuMs: 450 });
});

it.each([
  ['/usr/bin/node\0/app/dist/services/cli.js\0up\0--index\0examples/shop\0', 'up'],
  ['/usr/bin/node\0--inspect\0cli.js\0prefill\0', 'prefill'],
  ['npm start\0', 'npm'],
  ['sh\0-c\0node cli.js up --index examples/shop\0', 'sh'],
])('a process is called by its role, or by its program (%j)', (command, name) => {
  expect(nameOf(command)).toBe(name);
});

it('the tree of a process holds what it has started, and what that has started', async () => {
  const shell = spawn('sh', ['-c', 'echo started; cat; true'], { stdio: ['pipe', 'pipe', 'inherit'] });
  onTestFinished(() => void shell.stdin.end());
  await once(shell.stdout, 'data');
  const tree = await processTree(process.pid);
  const found = tree.find(({ pid }) => pid === shell.pid);
  expect(found).toMatchObject({ name: 'sh', parent: process.pid });
  expect(tree.filter(({ parent }) => parent === shell.pid).map(({ name }) => name)).toHaveLength(1);
  expect(tree[0]).toMatchObject({ pid: process.pid });
});
