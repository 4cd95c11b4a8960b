// Search in pages that were opened from the disk: browsers refuse them workers, so that the script of the search runs in
// a hidden frame instead, with the two messages of a worker.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.ready = new Promise(resolve => {
        const frame = document.createElement("iframe")
        frame.hidden = true
        frame.onload = () => {
          const inner = frame.contentWindow
          inner.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
          const script = inner.document.createElement("script")
          script.src = url
          script.onload = () => resolve(inner)
          inner.document.body.append(script)
        }
        document.body.append(frame)
      })
    }

    postMessage(data) {
      this.ready.then(inner => inner.dispatchEvent(new MessageEvent("message", { data })))
    }
  }
}
