// Fills the log while its Job runs; the page is complete without this.
const log = document.getElementById('log'), lines = [];
const source = new EventSource(log.dataset.source);
source.onmessage = e => {
  const low = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  lines.push(JSON.parse(e.data).data.replace(/\x1b\[[0-9;?]*[A-Za-z]/g, ''));
  if (lines.length > 2000) lines.splice(0, 500);
  log.textContent = lines.join('\n') + '\n';
  if (low) log.scrollTop = log.scrollHeight;
};
source.onerror = () => { source.close(); setTimeout(() => location.reload(), 500); };   // the Job has ended
