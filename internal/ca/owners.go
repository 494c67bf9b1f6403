package ca

import (
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/util/cache"
)

// owners knows which accepted reviews hang on which pod and service account, so that they go when those do.
type owners struct {
	mu sync.Mutex
	// reviews holds for each UID what forgets the reviews of its tokens. It may hold more than is remembered, since reviews end by
	// themselves too: at many times as many it begins anew, and then so do the reviews.
	reviews map[string][]func()
	count   int
	// gone are UIDs that went a moment ago: a review that was under way then is not remembered.
	gone *cache.LRUExpireCache
}

// maxGone bounds the memory; a review takes at most reviewTimeout.
const maxGone = 10_000

// remember calls add, unless the owner has gone meanwhile, and sees to it that remove is called when it goes.
func (o *owners) remember(user authenticationv1.UserInfo, add, remove func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	uids := []string{user.UID, first(user.Extra[extraPodUID])}
	for _, uid := range uids {
		if o.gone == nil {
			break
		}
		if _, went := o.gone.Get(uid); uid != "" && went {
			return
		}
	}
	if o.count >= 8*maxAccepted {
		o.forgetAll()
	}
	if o.reviews == nil {
		o.reviews = map[string][]func(){}
	}
	add()
	for _, uid := range uids {
		if uid != "" {
			o.reviews[uid] = append(o.reviews[uid], remove)
			o.count++
		}
	}
}

// went forgets the reviews of one owner, "" those of all.
func (o *owners) went(uid string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if uid == "" {
		o.forgetAll()
		return
	}
	if o.gone == nil {
		o.gone = cache.NewLRUExpireCache(maxGone)
	}
	o.gone.Add(uid, nil, 2*reviewTimeout+time.Second)
	for _, remove := range o.reviews[uid] {
		remove()
	}
	o.count -= len(o.reviews[uid])
	delete(o.reviews, uid)
}

func (o *owners) forgetAll() {
	for _, removes := range o.reviews {
		for _, remove := range removes {
			remove()
		}
	}
	o.reviews, o.count = nil, 0
}

// Gone tells the authority that the pod or the service account with that UID does not exist any more, so that its tokens are reviewed
// again; "" says that it may be so of any.
func (a *Authority) Gone(uid string) { a.tokens.owners.went(uid) }
